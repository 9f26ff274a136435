import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from styleclip_jax.errors import InputError
from styleclip_jax.methods import inversion as module
from styleclip_jax.methods.inversion import (
    InvertConfig,
    encode,
    encoder_pixels,
    invert,
    reconstruction_errors,
)
from styleclip_jax.methods.optimization import recorded_rows
from styleclip_jax.methods.tuning import TuneConfig, tune_generator, tune_step
from styleclip_jax.models import (
    E4E,
    LPIPS,
    ArcFace,
    ArcFaceConfig,
    E4EConfig,
    Generator,
    LPIPSConfig,
)
from styleclip_jax.sharding import replicate, spread

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ENCODER = E4EConfig(
    image_height=32,
    image_width=32,
    num_layers=8,
    w_dim=16,
    stem_width=4,
    stages=((4, 1), (8, 1), (8, 1), (8, 1)),
    reduction=4,
)
SYNTHESIZE, ENCODE = jax.jit(Generator.__call__), jax.jit(E4E.__call__)


@pytest.fixture(scope="module")
def generator(generator, random_model):
    """A random generator of the encoder's size with weak colors, so that images lie in [-1, 1]."""
    config = dataclasses.replace(generator.config, resolution=ENCODER.image_width)
    generator = random_model(Generator, config, seed=1)
    for rgb in generator.synthesis.rgbs:
        rgb.kernel[...] *= 0.1
    return generator


@pytest.fixture(scope="module")
def encoder(generator):
    return make_encoder(generator)


def make_encoder(generator, **changes):
    encoder = E4E(dataclasses.replace(ENCODER, **changes), rngs=nnx.Rngs(0))
    encoder.mean_latent[...] = generator.mean_latents(1)[0]
    return encoder


@pytest.fixture(scope="module")
def images(generator, w_plus):
    return jnp.asarray(np.clip(SYNTHESIZE(generator, w_plus), -1, 1))


@pytest.fixture(scope="module")
def lpips():
    return LPIPS(LPIPSConfig(stages=((4, 1), (8, 1))), rngs=nnx.Rngs(0))


def test_without_steps_the_latents_are_the_encoders(generator, encoder, images):
    inversion = invert(generator, images, encoder, InvertConfig(steps=0))
    expected = ENCODE(encoder, images)
    np.testing.assert_allclose(inversion.latents, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        inversion.images, SYNTHESIZE(generator, expected), rtol=1e-4, atol=1e-4
    )
    assert inversion.losses.shape == (0, 3)


def test_refinement_makes_every_term_smaller(generator, encoder, images, lpips, random_model):
    arcface = random_model(
        ArcFace, ArcFaceConfig(16, 4, ((4, 1), (8, 1)), reduction=2, embedding_dim=8), seed=0
    )
    networks = {"perceptual": lpips, "arcface": arcface}
    before = invert(generator, images, encoder, InvertConfig(steps=0), **networks)
    config = InvertConfig(steps=20, latent_lambda=0.0)
    after = invert(generator, images, encoder, config, **networks)
    assert set(after.errors) == {"mse", "psnr", "lpips", "identity_similarity"}
    assert np.all(after.errors["mse"] < before.errors["mse"])
    assert np.all(after.errors["lpips"] < before.errors["lpips"])
    assert np.all(after.losses[-1] < after.losses[0])


def test_latent_lambda_keeps_the_latents_near_the_encoders(generator, encoder, images):
    answer = encode(generator, encoder, images)

    def distance(latent_lambda):
        config = InvertConfig(steps=10, latent_lambda=latent_lambda)
        latents = invert(generator, images, encoder, config).latents
        return np.abs(np.asarray(latents) - np.asarray(answer)).mean()

    assert distance(10.0) < 0.5 * distance(0.0)


def test_images_of_a_batch_do_not_depend_on_each_other(generator, encoder, images, clip):
    config = InvertConfig(steps=3)
    together = invert(generator, images, encoder, config, perceptual=clip)
    alone = invert(generator, images[1:2], encoder, config, perceptual=clip)
    np.testing.assert_allclose(together.latents[1:2], alone.latents, atol=1e-3)
    assert "clip_distance" in together.errors


def test_without_an_encoder_one_latent_for_all_layers_is_found(generator, images):
    start = invert(generator, images, config=InvertConfig(steps=0))
    np.testing.assert_allclose(start.latents, generator.mean_latents(3))
    inversion = invert(generator, images, config=InvertConfig(steps=20))
    layers = np.asarray(inversion.latents)
    np.testing.assert_array_equal(layers, np.broadcast_to(layers[:, :1], layers.shape))
    assert np.all(inversion.errors["mse"] < start.errors["mse"])
    again = invert(generator, images, config=InvertConfig(steps=20))
    np.testing.assert_array_equal(again.latents, layers)
    other = invert(generator, images, config=InvertConfig(steps=20), key=jax.random.key(1))
    assert np.any(other.latents != layers)


def test_the_device_loop_and_the_steps_from_the_host_agree(generator, encoder, images, monkeypatch):
    config = InvertConfig(steps=4)
    from_host = invert(generator, images, encoder, config)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    in_loop = invert(generator, images, encoder, config)
    np.testing.assert_allclose(in_loop.latents, from_host.latents, atol=1e-3)


def test_runs_with_other_numbers_of_steps_share_a_program(generator, encoder, images):
    programs: Any = module._step_from_host
    programs.clear_cache()
    # As scripts place them.
    generator, images = replicate(generator), spread(images)
    for steps in (3, 5):
        inversion = invert(generator, images, encoder, InvertConfig(steps=steps))
        assert len(inversion.losses) == steps
    assert programs._cache_size() == 1


def test_losses_of_many_steps_have_room():
    assert [recorded_rows(steps) for steps in (1, 128, 129, 300)] == [128, 128, 256, 384]


def test_rounds_feed_the_encoder_its_own_image(generator, images):
    encoder = make_encoder(generator, in_channels=6, rounds=2)
    latents = generator.mean_latents(3)
    for _ in range(2):
        both = np.concatenate([images, SYNTHESIZE(generator, latents)], axis=-1)
        latents = ENCODE(encoder, both, latents)
    np.testing.assert_allclose(encode(generator, encoder, images), latents, rtol=1e-3, atol=1e-3)


def test_a_wide_encoder_sees_the_middle_rows():
    config = dataclasses.replace(ENCODER, image_height=24)
    images = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None, None], (1, 64, 64, 3))
    pixels = np.asarray(jax.jit(encoder_pixels, static_argnums=1)(images, config))
    assert pixels.shape == (1, 24, 32, 3)
    np.testing.assert_allclose(pixels[0, :, 0, 0], 8.5 + 2 * np.arange(24), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_layers": 10}, "10 latents of width 16"), ({"w_dim": 8}, "8 latents of width 8")],
)
def test_an_encoder_for_another_generator_is_refused(
    changes, message, generator, images, random_model
):
    encoder = random_model(E4E, dataclasses.replace(ENCODER, **changes), seed=0)
    with pytest.raises(InputError, match=message):
        invert(generator, images, encoder)


def test_an_encoder_of_another_domain_is_refused(generator, images, random_model):
    encoder = random_model(E4E, ENCODER, seed=0)
    encoder.mean_latent[...] = -generator.mean_latents(1)[0]
    with pytest.raises(InputError, match="mean latents differ"):
        invert(generator, images, encoder)


def test_images_of_another_size_are_refused(generator):
    with pytest.raises(InputError, match=r"expected \(batch, 32, 32, 3\)"):
        invert(generator, jnp.zeros((1, 64, 64, 3)))


@pytest.mark.parametrize(
    "changes", [{"steps": -1}, {"learning_rate": math.nan}, {"latent_lambda": -1.0}]
)
def test_invalid_settings_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        InvertConfig(**changes)


def test_errors_have_their_units():
    ones = np.ones((1, 8, 8, 3), np.float32)
    zeros, fifths, threes = (jnp.asarray(x * ones) for x in (0, 0.2, 3))
    errors = reconstruction_errors(zeros, fifths)
    np.testing.assert_allclose(errors["mse"], 0.04, rtol=1e-5)
    np.testing.assert_allclose(errors["psnr"], 20, rtol=1e-5)
    assert np.isfinite(reconstruction_errors(threes, jnp.asarray(ones))["psnr"]).all()


def test_tuning_restores_details_that_latents_do_not_describe(generator, w_plus, images, lpips):
    marked, w_plus = np.array(images[:1]), w_plus[:1]
    marked[:, 8:24, 8:24] = (1, -1, 1)
    marked = jnp.asarray(marked)
    config = TuneConfig(steps=60, learning_rate=2e-2, stop_distance=0.0)
    before = jax.tree.map(np.asarray, generator)
    result = tune_generator(generator, w_plus, marked, lpips, config)
    assert result.distances.shape == (60, 1)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, generator), before)

    def error(generator):
        difference = np.asarray(SYNTHESIZE(generator, w_plus)) - np.asarray(marked)
        return np.square(difference)[:, 8:24, 8:24].mean()

    assert error(result.generator) < 0.5 * error(generator)
    for name in ("mapping", "mean_w"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(result.generator, name), getattr(generator, name)
        )
    np.testing.assert_array_equal(
        result.generator.synthesis.convs[0].noise[...], generator.synthesis.convs[0].noise[...]
    )


def test_tuning_stops_when_the_images_are_close(generator, w_plus, lpips):
    result = tune_generator(generator, w_plus, SYNTHESIZE(generator, w_plus), lpips)
    assert result.distances.shape == (1, 3)


def test_a_tuning_step_is_compiled_once(generator, w_plus, images, lpips):
    fresh = replicate(Generator(generator.config, rngs=nnx.Rngs(0)))
    programs: Any = tune_step
    programs.clear_cache()
    for config in (TuneConfig(steps=3, stop_distance=0.0), TuneConfig(2, learning_rate=1e-4)):
        tune_generator(fresh, w_plus[:1], images[:1], lpips, config)
    assert programs._cache_size() == 1
