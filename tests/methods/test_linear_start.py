import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from styleclip_jax.errors import InputError
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.losses import clip_loss
from styleclip_jax.methods.linear_start import (
    SampleFeatures,
    latent_directions,
    sample_features,
)
from styleclip_jax.methods.optimization import OptimizeConfig, edit_latents
from styleclip_jax.models import Generator

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.fixture(scope="module")
def planted():
    """Samples whose features move along the first axis with `0.1 w @ slope`."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(4000, 6)).astype(np.float32)
    slope = np.array([2, -1, 0, 0, 0, 0], np.float32)
    features = np.zeros((4000, 3), np.float32)
    features[:, 0], features[:, 1] = 0.1 * latents @ slope, 1
    return slope, SampleFeatures(jnp.asarray(latents), (jnp.asarray(features),))


@pytest.fixture(scope="module")
def latents(generator):
    return sample_latents(generator, 3, seed=0, truncation=1.0)


@pytest.fixture(scope="module")
def texts():
    return jax.random.normal(jax.random.key(5), (3, 16))


def test_a_linear_relation_is_found_and_is_one_deviation_long(planted):
    slope, samples = planted
    text, neutral = jnp.array([[3.0, 1, 0]]), jnp.array([[0.0, 1, 0]])
    (direction,) = latent_directions(samples, text, neutral)
    np.testing.assert_allclose(direction / np.linalg.norm(direction), slope / 5**0.5, atol=0.03)
    # Along every direction these samples have a standard deviation of 1.
    assert np.linalg.norm(direction) == pytest.approx(1, abs=0.03)


def test_every_text_has_its_direction_and_the_opposite_text_the_opposite_one(planted):
    _, samples = planted
    there, back = latent_directions(samples, jnp.array([[1.0, 0, 0], [-1, 0, 0]]))
    np.testing.assert_allclose(there, -back, atol=1e-5)


def test_the_similarities_of_several_clips_count_equally(planted):
    _, samples = planted
    (features,) = samples.features
    both = samples._replace(features=(features, jnp.roll(features, 1, axis=1)))
    texts = jnp.array([[1.0, 0, 0]]), jnp.array([[0, 1.0, 0]])
    (one,), (two,) = (latent_directions(samples, texts[0]), latent_directions(both, texts))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_first_samples_do_not_depend_on_how_many_follow(generator, clip):
    few, many = (sample_features(generator, clip, num, seed=1) for num in (3, 5))
    np.testing.assert_allclose(few.latents, many.latents[:3], atol=1e-6)
    np.testing.assert_allclose(few.features[0], many.features[0][:3], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(many.features[0], axis=-1), 1, atol=1e-5)


def test_too_few_samples_are_refused(generator, clip, planted):
    with pytest.raises(InputError, match="the number of samples is 0, expected at least 1"):
        sample_features(generator, clip, 0)
    _, samples = planted
    with pytest.raises(InputError, match="the number of samples is 1, expected at least 2"):
        latent_directions(jax.tree.map(lambda x: x[:1], samples), jnp.array([[1.0, 0, 0]]))


@pytest.mark.parametrize("space", ["w_plus", "w", "stylespace"])
def test_every_image_starts_where_its_loss_along_the_direction_is_lowest(
    generator, clip, latents, texts, space
):
    text = texts[:1]
    directions = 0.5 * jax.random.normal(jax.random.key(3), (len(latents), generator.config.w_dim))
    config = OptimizeConfig(steps=1, l2_lambda=0, space=space)
    first = edit_latents(generator, clip, latents, text, config, directions=directions).losses[0]
    along = []
    for step in (0, 1.5, 3, 4.5, 6, 7.5):
        moved = np.asarray(latents) + np.float32(step) * np.asarray(directions)[:, None]
        along.append(jax.jit(clip_loss)(clip, jax.jit(synthesize)(generator, moved), text))
    np.testing.assert_allclose(first, np.min(along, axis=0), atol=1e-4)


def test_the_distance_to_the_first_latents_counts_in_the_choice(generator, clip, latents, texts):
    directions = jnp.ones((1, generator.config.w_dim))
    config = OptimizeConfig(steps=1, l2_lambda=1e6)
    result = edit_latents(generator, clip, latents, texts, config, directions=directions)
    np.testing.assert_allclose(result.latents, latents, atol=1e-6)


def test_directions_fit_the_latents(generator, clip, latents, texts):
    with pytest.raises(InputError, match=r"directions have shape \(1, 3\), expected \(1, 16\) or"):
        edit_latents(generator, clip, latents, texts, directions=jnp.zeros((1, 3)))


@pytest.mark.parametrize("guidance", ["similarity", "direction"])
def test_the_direction_is_found_on_as_many_samples_as_the_settings_say(
    generator, clip, latents, texts, guidance
):
    config = OptimizeConfig(steps=1, l2_lambda=0, space="w", guidance=guidance, start_samples=4)
    text, neutral = texts[:1], texts[1:2]
    directions = latent_directions(
        sample_features(generator, clip, 4), text, neutral if guidance == "direction" else None
    )
    edit = functools.partial(edit_latents, generator, clip, latents, text, neutral_features=neutral)
    expected = edit(dataclasses.replace(config, start_samples=0), directions=directions)
    # The start is another one; the first step changes nothing.
    assert np.abs(np.asarray(expected.latents) - np.asarray(latents)).max() > 0.1
    np.testing.assert_allclose(edit(config).latents, expected.latents, atol=1e-5)
    traced = jax.jit(lambda: edit(config).latents)()
    np.testing.assert_allclose(traced, expected.latents, atol=1e-4)


def test_styles_start_along_the_direction_as_latents_do(generator, clip, latents, texts):
    directions = jnp.ones((1, generator.config.w_dim))
    config = OptimizeConfig(steps=1, l2_lambda=0, space="stylespace")
    styles = jax.jit(Generator.styles)(generator, latents)
    ours, expected = (
        edit_latents(generator, clip, x, texts, config, directions=directions)
        for x in (styles, latents)
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ours.latents, expected.latents
    )
