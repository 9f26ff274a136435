import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from flax import nnx

from ckpt_convert import lpips as lpips_conversion
from ckpt_convert.formats import SourceFile
from styleclip_jax.io.checkpoints import load_lpips, save_model
from styleclip_jax.models.lpips import LPIPS, LPIPSConfig

pytestmark = pytest.mark.usefixtures("strict_dtypes")
GOLDEN = seeded.load("lpips")
SMALL = LPIPSConfig(stages=((4, 1), (8, 1)))

distances = jax.jit(LPIPS.__call__)


@jax.jit
def total_and_gradient(lpips, images, others):
    return jax.value_and_grad(lambda images: lpips(images, others).sum())(images)


def small_lpips():
    return jax.jit(lambda: LPIPS(SMALL, rngs=nnx.Rngs(0)))()


@functools.cache
def official_lpips():
    """Our LPIPS with the weights that the official one had."""
    source = SourceFile("lpips", "pytorch", GOLDEN.weights("lpips"), {}, {})
    return lpips_conversion.convert(source).model


def golden_images():
    return [
        jnp.asarray(GOLDEN.input(name).transpose(0, 2, 3, 1)) for name in ("images", "images.other")
    ]


def test_distances_and_their_gradient_are_the_official_ones():
    @jax.jit
    def value_and_gradient(lpips, images, others):
        def total(images):
            distances = lpips(images, others)
            return distances.sum(), distances

        return jax.grad(total, has_aux=True)(images)

    gradient, distances = value_and_gradient(official_lpips(), *golden_images())
    np.testing.assert_allclose(distances, GOLDEN["distances"], rtol=1e-4)
    expected = GOLDEN["gradient"].transpose(0, 2, 3, 1)
    assert np.abs(gradient - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_same_image_has_distance_zero_and_no_gradient():
    images = np.zeros((1, 16, 16, 3), np.float32)
    images[:, :8] = 0.5
    value, gradient = total_and_gradient(small_lpips(), images, images)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_pixels_where_no_feature_is_active_do_not_make_the_gradient_nan():
    lpips = small_lpips()
    for conv in lpips.convs:
        conv.bias[...] -= 100.0
    images, others = jnp.zeros((1, 16, 16, 3)), jnp.ones((1, 16, 16, 3))
    _, gradient = total_and_gradient(lpips, images, others)
    assert np.isfinite(gradient).all()


def test_an_lpips_is_saved_and_loaded(tmp_path):
    lpips = small_lpips()
    save_model(tmp_path / "lpips", lpips)
    images, others = jnp.zeros((1, 16, 16, 3)), jnp.ones((1, 16, 16, 3))
    np.testing.assert_array_equal(
        distances(load_lpips(tmp_path / "lpips"), images, others), distances(lpips, images, others)
    )


def test_a_depth_that_no_memory_holds_is_refused():
    with pytest.raises(ValueError, match="1000000000 convolutions"):
        LPIPSConfig(stages=((16, 10**9),))
