import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
import torch
import torch.nn.functional as F
from flax import nnx

from ckpt_convert import stylegan2, tables
from ckpt_convert.formats import SourceFile
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import build, flatten
from styleclip_jax.models.stylegan2 import (
    Generator,
    GeneratorConfig,
    convolve,
    trainable_convolve,
    upsample_image,
    upsampling_convolve,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")
GOLDEN = seeded.load("stylegan2")
GENERATORS = sorted(GOLDEN.settings["configs"])
WITH_STYLES = [name for name in GENERATORS if name.startswith("rosinality")]
BLUR = torch.tensor(np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64)


@functools.cache
def official_generator(name, dtype=jnp.float32):
    """Our generator with the weights that the official one had."""
    layout = stylegan2.ROSINALITY if name in WITH_STYLES else stylegan2.NVIDIA
    weights = GOLDEN.weights(name)
    if name in WITH_STYLES:
        weights["latent_avg"] = GOLDEN.input(f"{name}.latent_avg")
    source = SourceFile(name, "pytorch", weights, {}, {})
    table = stylegan2.make_table(source, layout, "")
    config = GeneratorConfig(**GOLDEN.settings["configs"][name])
    model = tables.fill(Generator, config, source, table, layout.ignored)
    return build(Generator, config, lambda _: flatten(model), dtype)


def assert_close(ours, official, tolerance=1e-4):
    if official.ndim == 4:
        official = official.transpose(0, 2, 3, 1)
    assert np.abs(np.asarray(ours) - official).max() <= tolerance * np.abs(official).max()


@pytest.mark.parametrize("name", GENERATORS)
def test_images_of_w_plus_are_the_official_ones(name):
    w_plus = jnp.asarray(GOLDEN.input(f"{name}.w_plus"))
    images = jax.jit(Generator.__call__)(official_generator(name), w_plus)
    assert_close(images, GOLDEN[f"{name}.image"])


@pytest.mark.parametrize("name", GENERATORS)
def test_mapping_and_truncation_are_the_official_ones(name):
    generator = official_generator(name)
    z = jnp.asarray(GOLDEN.input(f"{name}.z"))
    w_plus = np.asarray(jax.jit(Generator.map)(generator, z))
    assert w_plus.shape == (2, generator.num_layers, generator.config.w_dim)
    assert (w_plus == w_plus[:, :1]).all()
    assert_close(w_plus[:, 0], GOLDEN[f"{name}.w_from_z"])
    w_plus = jax.jit(Generator.map)(generator, z, GOLDEN.settings["truncation"])
    assert_close(np.asarray(w_plus)[:, 0], GOLDEN[f"{name}.truncated_w_from_z"])
    images = jax.jit(Generator.__call__)(generator, w_plus)
    assert_close(images, GOLDEN[f"{name}.truncated_image_from_z"])


@pytest.mark.parametrize("name", WITH_STYLES)
def test_stylespace_is_the_official_one(name):
    generator = official_generator(name)
    styles = jax.jit(Generator.styles)(generator, jnp.asarray(GOLDEN.input(f"{name}.w_plus")))
    assert tuple(s.shape[1] for s in styles) == generator.config.style_dims
    for i, style in enumerate(styles):
        assert_close(style, GOLDEN[f"{name}.style_{i}"])


@pytest.mark.parametrize("name", WITH_STYLES)
def test_images_of_styles_are_the_official_ones(name):
    generator = official_generator(name)
    count = len(generator.config.style_dims)
    styles = tuple(jnp.asarray(GOLDEN.input(f"{name}.style_{i}")) for i in range(count))
    images = jax.jit(Generator.synthesize)(generator, styles)
    assert_close(images, GOLDEN[f"{name}.image_from_styles"])


def test_bfloat16_gives_nearly_the_same_image_in_float32():
    w_plus = jnp.asarray(GOLDEN.input("nvidia_64.w_plus"))
    generator = official_generator("nvidia_64", jnp.bfloat16)
    images = np.asarray(jax.jit(Generator.__call__)(generator, w_plus))
    assert images.dtype == np.float32
    expected = GOLDEN["nvidia_64.image"].transpose(0, 2, 3, 1)
    error = np.sqrt(np.mean((images - expected) ** 2) / np.mean(expected**2))
    assert 1e-4 < error < 2e-2


def test_a_lower_resolution_is_the_image_of_the_smaller_generator(generator):
    lower = generator.config.resolution // 2
    config = dataclasses.replace(generator.config, resolution=lower)
    arrays = flatten(generator)
    small = build(Generator, config, lambda abstract: {name: arrays[name] for name in abstract})
    rng = np.random.default_rng(0)
    w_plus = rng.normal(size=(2, generator.num_layers, config.w_dim)).astype(np.float32)
    synthesize = jax.jit(Generator.__call__, static_argnames="resolution")
    images = synthesize(generator, w_plus, resolution=lower)
    assert images.shape == (2, lower, lower, 3)
    expected = synthesize(small, w_plus[:, : small.num_layers])
    np.testing.assert_allclose(images, expected, atol=1e-5)


@pytest.mark.parametrize("resolution", [2, 24, 64])
def test_a_resolution_that_the_generator_lacks_is_refused(generator, resolution):
    with pytest.raises(ValueError, match=f"{resolution}.*{generator.config.resolution}"):
        generator(generator.mean_latents(1), resolution)


def test_truncation_to_zero_is_the_mean_latent(generator):
    w_plus = generator.map(jnp.ones((1, 12)), truncation=0.0)
    np.testing.assert_allclose(w_plus, generator.mean_latents(1), atol=1e-6)


def test_layers_and_style_widths_at_1024_pixels_are_the_official_ones():
    config = GeneratorConfig()
    assert config.num_layers == 18
    assert len(config.style_dims) == 26
    # STYLESPACE_DIMENSIONS of the official models/stylegan2/model.py.
    assert config.style_dims == (512,) * 15 + (256,) * 3 + (128,) * 3 + (64,) * 3 + (32,) * 2
    assert config.rgb_style_indices == tuple(range(1, 26, 3))


@pytest.mark.parametrize("resolution", [0, 4, 48, 2048])
def test_a_resolution_that_is_no_power_of_two_in_range_is_refused(resolution):
    with pytest.raises(ValueError, match=str(resolution)):
        GeneratorConfig(resolution=resolution)


def test_upsampling_convolution_is_a_transposed_convolution_and_a_blur():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 7, 3)), rng.normal(size=(3, 3, 3, 4))
    ours = jax.jit(upsampling_convolve)(x.astype(np.float32), kernel.astype(np.float32))
    y = F.conv_transpose2d(
        torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(kernel).permute(2, 3, 0, 1), stride=2
    )
    blur = (4 * BLUR).expand(4, 1, 4, 4)
    slow = F.conv2d(F.pad(y, (1, 1, 1, 1)), blur, groups=4).permute(0, 2, 3, 1)
    assert ours.shape == (2, 10, 14, 4)
    np.testing.assert_allclose(ours, slow, atol=1e-5)


def test_image_upsampling_is_zero_insertion_and_a_blur():
    image = np.random.default_rng(0).normal(size=(2, 5, 7, 3))
    zeros = torch.zeros(2, 3, 10, 14, dtype=torch.float64)
    zeros[:, :, ::2, ::2] = torch.tensor(image).permute(0, 3, 1, 2)
    blur = (4 * BLUR).expand(3, 1, 4, 4)
    slow = F.conv2d(F.pad(zeros, (2, 1, 2, 1)), blur, groups=3).permute(0, 2, 3, 1)
    ours = jax.jit(upsample_image)(image.astype(np.float32))
    np.testing.assert_allclose(ours, slow, atol=1e-6)


@pytest.mark.parametrize("what", ["mapping", "styles", "demodulation"])
def test_mapping_styles_and_demodulation_are_exact_float32_on_accelerators(generator, what):
    w_plus = generator.mean_latents(2)
    conv = generator.synthesis.convs[0]
    with jax.default_matmul_precision("default"):
        if what == "mapping":
            lowered = jax.jit(Generator.map).lower(generator, jnp.ones((2, 12)))
        elif what == "styles":
            lowered = jax.jit(Generator.styles).lower(generator, w_plus)
        else:
            x, style = jnp.ones((2, 4, 4, 8)), jnp.ones((2, 8))
            lowered = jax.jit(type(conv).__call__).lower(conv, x, style)
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert products and all("[HIGHEST, HIGHEST]" in line for line in products)


def test_the_mean_latent_is_an_array_to_numpy_and_jax(generator):
    mean, width = generator.mean_w, generator.config.w_dim
    assert mean.shape == np.asarray(mean).shape == jnp.asarray(mean).shape == (width,)
    w_plus = jnp.ones((2, generator.num_layers, width))
    expected = np.asarray(w_plus) - np.asarray(mean)
    for difference in (
        w_plus - mean,
        np.asarray(w_plus) - mean,
        jax.jit(jnp.subtract)(w_plus, mean),
    ):
        np.testing.assert_array_equal(difference, expected)
    np.testing.assert_array_equal(jnp.broadcast_to(mean, w_plus.shape), generator.mean_latents(2))
    np.testing.assert_allclose(np.linalg.norm(mean), np.linalg.norm(np.asarray(mean)))


def test_latents_of_another_generator_are_refused(generator):
    layers, width = generator.num_layers, generator.config.w_dim
    for shape in ((2, layers - 1, width), (2, layers + 1, width), (2, layers, width + 1)):
        with pytest.raises(InputError, match=rf"\(2, {shape[1]}, {shape[2]}\).*\(batch, {layers}"):
            generator(jnp.zeros(shape))
    styles = generator.styles(generator.mean_latents(2))
    for wrong in (styles[:-1], (styles[0][:, :-1], *styles[1:]), (*styles, styles[0])):
        with pytest.raises(InputError, match="for this generator"):
            generator.synthesize(wrong)


@pytest.mark.parametrize("multiplier", [0.0, -0.01, float("inf"), float("nan")])
def test_a_learning_rate_multiplier_that_is_not_positive_is_refused(multiplier):
    with pytest.raises(ValueError, match="mapping_lr_multiplier"):
        GeneratorConfig(mapping_lr_multiplier=multiplier)


@pytest.mark.parametrize("name", ["z_dim", "w_dim", "mapping_layers", "channel_max"])
def test_a_size_of_zero_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        GeneratorConfig(**{name: 0})


def test_layers_without_channels_are_refused():
    with pytest.raises(ValueError, match=r"channel_base is 512, expected at least .* 1024"):
        GeneratorConfig(channel_base=512)


@pytest.mark.parametrize("clamp", [0.0, -256.0, float("nan")])
def test_a_clamp_that_is_not_positive_is_refused(clamp):
    with pytest.raises(ValueError, match="conv_clamp"):
        GeneratorConfig(conv_clamp=clamp)


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (2, 2), (1, 0)])
def test_the_fast_gradient_of_a_convolution_is_the_gradient(size, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 5, 4)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 4, 3)).astype(np.float32)

    @jax.jit(static_argnums=0)
    def value_and_gradients(convolve, x, kernel):
        y, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, padding), x, kernel)
        weights = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
        return y, *pullback(weights)

    results = (value_and_gradients(f, x, kernel) for f in (trainable_convolve, convolve))
    for fast, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)


def test_a_generator_computes_all_its_convolutions_with_the_given_function():
    kernels = []

    def noted(x, kernel, padding):
        kernels.append(kernel.shape)
        return trainable_convolve(x, kernel, padding)

    config = GeneratorConfig(
        resolution=16, z_dim=4, w_dim=8, mapping_layers=1, channel_base=64, channel_max=4
    )
    fast: Any = {"convolve": noted}
    given, plain = (Generator(config, rngs=nnx.Rngs(0), **options) for options in (fast, {}))
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, config.num_layers, 8)).astype(np.float32)
    images = jax.jit(Generator.__call__)(given, latents)
    assert len(kernels) == len(given.synthesis.convs)
    np.testing.assert_allclose(images, jax.jit(Generator.__call__)(plain, latents), atol=1e-5)
