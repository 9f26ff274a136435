import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from styleclip_jax.errors import InputError
from styleclip_jax.losses import bicubic_matrix, clip_pixels
from styleclip_jax.methods.relevance import (
    RelevanceConfig,
    build_directions,
    channel_statistics,
    directions_config,
    num_items,
    relevance_steps,
    unit_rows,
    with_scales,
)
from styleclip_jax.models import DirectionsConfig, Generator
from styleclip_jax.models.directions import channel_widths
from styleclip_jax.models.stylegan2 import conv_entries

pytestmark = pytest.mark.usefixtures("strict_dtypes")

IMAGES = 3
CONFIG = RelevanceConfig(num_images=IMAGES, guide_resolution=16)


map_z, styles_of = jax.jit(Generator.map), jax.jit(Generator.styles)


def setup(generator, clip, config):
    described = directions_config(generator, clip, config)
    return described, channel_statistics(generator, described, num_samples=500)


def run(generator, clip, config, statistics, batch_size=16) -> np.ndarray:
    *_, last = relevance_steps(generator, clip, config, statistics, batch_size=batch_size)
    return last.total


def official_latents(generator):
    z = np.random.RandomState(5).randn(IMAGES, generator.config.z_dim)
    return map_z(generator, z.astype(np.float32), 0.7)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def features(generator, clip):
    """CLIP's unit features of styles, as an obvious program."""

    @jax.jit
    def of(styles):
        images = generator.synthesize(styles, 16)
        return clip.encode_image(clip_pixels(images, clip.config.image_size, "bicubic"))

    return lambda styles: unit(np.asarray(of(tuple(styles))))


def test_differences_are_those_of_an_obvious_loop(generator, clip, features):
    described, statistics = setup(generator, clip, CONFIG)
    total = run(generator, clip, CONFIG, statistics)
    styles = styles_of(generator, official_latents(generator))
    entries = conv_entries(generator.config.style_dims)[:5]
    starts = np.cumsum([0, *described.widths])
    for layer, column in ((0, 0), (1, 3), (4, 7)):
        channel = starts[layer] + column
        ends = []
        for sign in (1, -1):
            moved = [np.array(s) for s in styles]
            value = statistics.mean[channel] + sign * 5 * statistics.std[channel]
            moved[entries[layer]][:, column] = value
            ends.append(features(moved))
        expected = unit(unit(ends[0] - ends[1]).mean(axis=0))
        np.testing.assert_allclose(unit_rows(total)[channel], expected, atol=1e-3)


@pytest.mark.parametrize("space", ["stylespace", "w"])
def test_the_jacobian_equals_jaxs(generator, clip, space):
    config = dataclasses.replace(CONFIG, method="jacobian", space=space)
    described, statistics = setup(generator, clip, config)
    # 16 cotangents are not a multiple of 5.
    total = run(generator, clip, config, statistics, batch_size=5)
    latents = official_latents(generator)

    def features(w_plus, change):
        if space == "w":
            styles = generator.styles(w_plus[None] + change)
        else:
            styles = list(generator.styles(w_plus[None]))
            for i, start in zip((0, 2), np.cumsum([0, *described.widths]), strict=False):
                width = styles[i].shape[1]
                styles[i] = styles[i] + change[start : start + width]
        pixels = clip_pixels(generator.synthesize(tuple(styles), 16), 32, "bicubic")
        x = clip.encode_image(pixels)[0]
        return x / jnp.linalg.norm(x)

    jacobian = jax.jit(jax.jacrev(features, argnums=1))
    zero = jnp.zeros(described.channels)
    rows = np.sum([unit_rows(np.asarray(jacobian(w, zero)).T) for w in np.asarray(latents)], axis=0)
    checked = slice(None) if space == "w" else slice(sum(described.widths[:2]))
    np.testing.assert_allclose(total[checked], rows[checked], atol=1e-3)


@pytest.mark.parametrize("method", ["differences", "jacobian"])
def test_a_run_resumes_where_it_was_stopped(generator, clip, method):
    config = dataclasses.replace(CONFIG, method=method, space="w")
    described, statistics = setup(generator, clip, config)
    steps = [(p.done, p.total.copy()) for p in relevance_steps(generator, clip, config, statistics)]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == num_items(described.channels, config)
    first = next(iter(relevance_steps(generator, clip, config, statistics)))
    *_, last = relevance_steps(generator, clip, config, statistics, first)
    np.testing.assert_allclose(last.total, steps[-1][1], atol=1e-5)


@pytest.mark.parametrize("space", ["stylespace", "w"])
def test_statistics_are_those_of_sampled_channels(generator, clip, space):
    described = DirectionsConfig(channel_widths(generator.config, space), 16, space)
    statistics = channel_statistics(generator, described, num_samples=2500)
    z = np.random.RandomState(5).randn(2500, generator.config.z_dim)
    w_plus = map_z(generator, z.astype(np.float32), 0.7)
    values = [np.asarray(w_plus)[:, 0]] if space == "w" else styles_of(generator, w_plus)
    if space == "stylespace":
        values = [values[i] for i in conv_entries(generator.config.style_dims)]
    values = np.concatenate([np.asarray(v, np.float64) for v in values], axis=1)
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(statistics.std, values.std(axis=0), rtol=1e-3, atol=1e-4)


def test_published_relevances_get_scales_from_the_generator(generator):
    config = DirectionsConfig(channel_widths(generator.config, "stylespace")[:3], 16, scaled=False)
    bare = build_directions(config, np.ones((config.channels, 16), np.float32), None)
    scales = with_scales(bare, generator).scales
    assert (
        scales is not None and scales[...].shape == (config.channels,) and np.all(scales[...] > 0)
    )


def test_convolutions_above_the_guide_resolution_are_omitted(generator, clip):
    described = directions_config(generator, clip, CONFIG)
    assert described.widths == channel_widths(generator.config, "stylespace")[:5]


def test_pixels_are_resized_as_pillow_does():
    image = np.random.default_rng(0).uniform(-1, 1, (100, 100)).astype(np.float32)
    for size in (32, 150):
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
        matrix = bicubic_matrix(100, size)
        np.testing.assert_allclose(matrix @ image @ matrix.T, np.asarray(resized), atol=1e-5)


def test_rows_of_zeros_stay_finite():
    np.testing.assert_array_equal(
        unit_rows(np.array([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0.6, 0.8]]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"range": -1.0}, "range is -1"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        RelevanceConfig(**fields)


def test_a_resolution_that_the_generator_lacks_is_refused(generator: Generator, clip):
    with pytest.raises(InputError, match="guide_resolution is 24"):
        directions_config(generator, clip, RelevanceConfig(guide_resolution=24))


@pytest.mark.parametrize(
    ("relevance", "message"),
    [(np.ones((3, 16), np.float32), "shape"), (np.full((8, 16), np.nan, np.float32), "NaN")],
)
def test_misshapen_arrays_are_refused(relevance, message):
    with pytest.raises(InputError, match=message):
        build_directions(DirectionsConfig((8,), 16), relevance, None)
