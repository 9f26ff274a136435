import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from flax import nnx

from ckpt_convert import e4e as e4e_conversion
from ckpt_convert.formats import SourceFile
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_encoder, save_model
from styleclip_jax.models.e4e import E4E, E4EConfig, aligned_corners_matrix

pytestmark = pytest.mark.usefixtures("strict_dtypes")
GOLDEN = seeded.load("e4e")
SMALL = E4EConfig(
    image_height=32,
    image_width=32,
    num_layers=8,
    w_dim=12,
    stem_width=4,
    stages=((4, 1), (8, 1), (8, 1), (8, 1)),
    reduction=4,
)


@functools.cache
def official_encoder(model):
    """Our encoder with the weights that the official one had."""
    mean = {"latent_avg": np.zeros(512, np.float32)}
    source = SourceFile(model, "pytorch", GOLDEN.weights(model) | mean, {}, {})
    return e4e_conversion.convert(source).model


def small_encoder(config=SMALL):
    return E4E(config, rngs=nnx.Rngs(0))


encode = jax.jit(E4E.__call__)


@pytest.mark.parametrize(
    ("name", "model"), [("faces", "e4e"), ("cars", "e4e"), ("restyle", "restyle")]
)
def test_latents_are_the_official_ones(name, model):
    encoder = official_encoder(model)
    images = jnp.asarray(GOLDEN.input(f"images.{name}").transpose(0, 2, 3, 1))
    encoder.config = dataclasses.replace(encoder.config, image_height=images.shape[1])
    latents = np.asarray(encode(encoder, images))
    assert np.abs(latents - GOLDEN[name]).max() <= 1e-4 * np.abs(GOLDEN[name]).max()


def test_the_prediction_is_added_to_the_mean_latent_or_to_given_latents():
    encoder = small_encoder()
    images = jnp.ones((2, 32, 32, 3))
    latents = np.asarray(encode(encoder, images))
    encoder.mean_latent[...] += 1.0
    np.testing.assert_allclose(encode(encoder, images), latents + 1, atol=1e-5)
    given = encode(encoder, images, jnp.full((2, 8, 12), 2.0))
    np.testing.assert_allclose(given, latents + 2, atol=1e-5)


def test_all_layers_share_the_first_heads_code():
    encoder = small_encoder()
    for head in list(encoder.heads)[1:]:
        head.linear.kernel[...] = jnp.zeros_like(head.linear.kernel[...])
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    latents = np.asarray(encode(encoder, images))
    assert np.abs(latents).max() > 0
    np.testing.assert_array_equal(latents, np.broadcast_to(latents[:, :1], latents.shape))


def test_interpolation_keeps_the_corners():
    matrix = aligned_corners_matrix(3, 5)
    np.testing.assert_allclose(matrix @ [0, 1, 4], [0, 0.5, 1, 2.5, 4])


@pytest.mark.parametrize("shape", [(1, 16, 32, 3), (1, 32, 32, 6)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"expected \(batch, 32, 32, 3\)"):
        small_encoder()(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 4}, "in_channels is 4"),
        ({"rounds": 5}, "rounds is 5 with in_channels 3"),
        ({"in_channels": 6}, "rounds is 1 with in_channels 6"),
        ({"num_layers": 10**9}, "num_layers is 1000000000"),
        ({"middle_layer": 8}, "middle_layer is 8 and fine_layer 7"),
        ({"stages": ((16, 10**9), (16, 1), (16, 1))}, "1000000002 blocks"),
        ({"stages": ((16, 1),)}, "1 stages"),
        ({"image_width": 200}, "image_width is 200"),
        ({"image_height": 300}, "image_height is 300"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(E4EConfig(), **changes)


def test_an_encoder_is_saved_and_loaded(tmp_path):
    encoder = small_encoder(dataclasses.replace(SMALL, in_channels=6, rounds=3))
    save_model(tmp_path / "encoder", encoder)
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.config == encoder.config
    images = jnp.ones((1, 32, 32, 6))
    np.testing.assert_array_equal(encode(loaded, images), encode(encoder, images))
