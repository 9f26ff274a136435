import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from ckpt_convert import arcface as arcface_conversion
from ckpt_convert.formats import SourceFile
from styleclip_jax.io.checkpoints import build, flatten
from styleclip_jax.models.arcface import ArcFace, ArcFaceConfig

pytestmark = pytest.mark.usefixtures("strict_dtypes")
GOLDEN = seeded.load("mapper")


@functools.cache
def official_arcface():
    """Our ArcFace with the weights that the official one had."""
    source = SourceFile("arcface", "pytorch", GOLDEN.weights("arcface"), {}, {})
    return arcface_conversion.convert(source).model


def embed(arcface):
    images = jnp.asarray(GOLDEN.input("images.arcface").transpose(0, 2, 3, 1))
    return np.asarray(jax.jit(ArcFace.__call__)(arcface, images))


def test_embeddings_are_the_official_ones():
    features = embed(official_arcface())
    assert np.abs(features - GOLDEN["arcface"]).max() <= 1e-4 * np.abs(GOLDEN["arcface"]).max()


def test_embeddings_in_bfloat16_are_unit_vectors_close_to_those_in_float32():
    arrays = flatten(official_arcface())
    features = embed(build(ArcFace, ArcFaceConfig(), lambda _: arrays, jnp.bfloat16))
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    assert (np.sum(features * GOLDEN["arcface"], axis=1) > 0.99).all()


def test_a_depth_that_no_memory_holds_is_refused():
    with pytest.raises(ValueError, match="1000000000 blocks"):
        ArcFaceConfig(stages=((16, 10**9),))
