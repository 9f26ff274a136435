"""StyleGAN2 generators: rosinality's and StyleCLIP's ``.pt``, NVIDIA's ``.pkl``.

StyleGAN-NADA's files, and the generators in the files of encoders such as e4e, also have
rosinality's names.

Sources: ``model.py`` of rosinality/stylegan2-pytorch; ``training/networks.py`` of
NVlabs/stylegan2-ada-pytorch and ``training/networks_stylegan2.py`` of NVlabs/stylegan3.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ckpt_convert.formats import SourceFile
from ckpt_convert.tables import (
    Conversion,
    Ignored,
    Row,
    conv_kernel,
    describe,
    dimension,
    expand,
    fill,
    linear_kernel,
    unchanged,
)
from styleclip_jax.errors import InputError
from styleclip_jax.models.stylegan2 import Generator, GeneratorConfig

MEAN_SAMPLES = 4096


def batched_conv_kernel(x: np.ndarray) -> np.ndarray:
    """(1, out, in, height, width) -> (height, width, in, out)."""
    return conv_kernel(np.squeeze(x, 0))


def rgb_kernel(x: np.ndarray) -> np.ndarray:
    """(3, in, 1, 1) -> (in, 3)."""
    return linear_kernel(np.squeeze(x, (2, 3)))


def batched_rgb_kernel(x: np.ndarray) -> np.ndarray:
    """(1, 3, in, 1, 1) -> (in, 3)."""
    return rgb_kernel(np.squeeze(x, 0))


def rgb_bias(x: np.ndarray) -> np.ndarray:
    """(1, 3, 1, 1) -> (3,)."""
    return np.squeeze(x, (0, 2, 3))


def constant(x: np.ndarray) -> np.ndarray:
    """(channels, 4, 4) -> (4, 4, channels)."""
    return np.transpose(x, (1, 2, 0))


def batched_constant(x: np.ndarray) -> np.ndarray:
    """(1, channels, 4, 4) -> (4, 4, channels)."""
    return constant(np.squeeze(x, 0))


def noise_map(x: np.ndarray) -> np.ndarray:
    """(1, 1, height, width) -> (height, width)."""
    return np.squeeze(x, (0, 1))


def scalar(x: np.ndarray) -> np.ndarray:
    """(1,) -> ()."""
    return np.squeeze(x, 0)


def mean_latent(x: np.ndarray) -> np.ndarray:
    """(w_dim,), or (layers, w_dim) with the same vector in every layer -> (w_dim,)."""
    if x.ndim == 2:
        if not np.allclose(x, x[:1]):
            raise ValueError("the mean latent differs between layers")
        return x[0]
    return x


def is_blur_filter(x: np.ndarray) -> bool:
    """Whether a kernel is the [1, 3, 3, 1] low-pass filter, with any gain."""
    expected = np.outer([1, 3, 3, 1], [1, 3, 3, 1])
    return x.shape == (4, 4) and np.allclose(x * 64, expected * x.sum(), atol=1e-3)


class Layout(NamedTuple):
    """Parameter names of a family of generator files.

    Attributes:
        prefixes: Possible prefixes of the generator's keys; the first match is used.
        layer, conv, rgb, once: Table rows for each layer of the mapping network, each styled
            convolution, each ToRGB layer, and for the rest.
        layer_name, conv_name, rgb_name: Their official names by our index.
        ignored: Keys that are not converted.
    """

    prefixes: tuple[str, ...]
    layer: tuple[tuple, ...]
    conv: tuple[tuple, ...]
    rgb: tuple[tuple, ...]
    once: tuple[tuple, ...]
    layer_name: Callable[[int], str]
    conv_name: Callable[[int], str]
    rgb_name: Callable[[int], str]
    ignored: Ignored


ROSINALITY = Layout(
    prefixes=("g_ema.", "state_dict.decoder.", ""),
    layer=(
        ("{p}{name}.weight", "mapping.layers.{i}.kernel", linear_kernel),
        ("{p}{name}.bias", "mapping.layers.{i}.bias", unchanged),
    ),
    conv=(
        ("{p}{name}.conv.weight", "synthesis.convs.{i}.kernel", batched_conv_kernel),
        ("{p}{name}.conv.modulation.weight", "synthesis.convs.{i}.affine.kernel", linear_kernel),
        ("{p}{name}.conv.modulation.bias", "synthesis.convs.{i}.affine.bias", unchanged),
        ("{p}{name}.activate.bias", "synthesis.convs.{i}.bias", unchanged),
        ("{p}{name}.noise.weight", "synthesis.convs.{i}.noise_strength", scalar),
        ("{p}noises.noise_{i}", "synthesis.convs.{i}.noise", noise_map),
    ),
    rgb=(
        ("{p}{name}.conv.weight", "synthesis.rgbs.{i}.kernel", batched_rgb_kernel),
        ("{p}{name}.conv.modulation.weight", "synthesis.rgbs.{i}.affine.kernel", linear_kernel),
        ("{p}{name}.conv.modulation.bias", "synthesis.rgbs.{i}.affine.bias", unchanged),
        ("{p}{name}.bias", "synthesis.rgbs.{i}.bias", rgb_bias),
    ),
    once=(
        ("{p}input.input", "synthesis.constant", batched_constant),
        ("latent_avg", "mean_w", mean_latent),
    ),
    # The official sequence starts with the pixel norm.
    layer_name=lambda i: f"style.{i + 1}",
    conv_name=lambda i: f"convs.{i - 1}" if i else "conv1",
    rgb_name=lambda k: f"to_rgbs.{k - 1}" if k else "to_rgb1",
    ignored={
        r"(.*\.)?convs\.\d+\.conv\.blur\.kernel": is_blur_filter,
        r"(.*\.)?to_rgbs\.\d+\.upsample\.kernel": is_blur_filter,
        # The rest of a training checkpoint, the generator's or an encoder's.
        r"(g|d|g_optim|d_optim)\..*|ada_aug_p": None,
        r"(state_dict\.encoder|opts|optimizer|discriminator\w*)\..*": None,
    },
)

NVIDIA = Layout(
    prefixes=("G_ema.", ""),
    layer=(
        ("{p}{name}.weight", "mapping.layers.{i}.kernel", linear_kernel),
        ("{p}{name}.bias", "mapping.layers.{i}.bias", unchanged),
    ),
    conv=(
        ("{p}{name}.weight", "synthesis.convs.{i}.kernel", conv_kernel),
        ("{p}{name}.affine.weight", "synthesis.convs.{i}.affine.kernel", linear_kernel),
        ("{p}{name}.affine.bias", "synthesis.convs.{i}.affine.bias", unchanged),
        ("{p}{name}.bias", "synthesis.convs.{i}.bias", unchanged),
        ("{p}{name}.noise_strength", "synthesis.convs.{i}.noise_strength", unchanged),
        ("{p}{name}.noise_const", "synthesis.convs.{i}.noise", unchanged),
    ),
    rgb=(
        ("{p}{name}.weight", "synthesis.rgbs.{i}.kernel", rgb_kernel),
        ("{p}{name}.affine.weight", "synthesis.rgbs.{i}.affine.kernel", linear_kernel),
        ("{p}{name}.affine.bias", "synthesis.rgbs.{i}.affine.bias", unchanged),
        ("{p}{name}.bias", "synthesis.rgbs.{i}.bias", unchanged),
    ),
    once=(
        ("{p}synthesis.b4.const", "synthesis.constant", constant),
        ("{p}mapping.w_avg", "mean_w", unchanged),
    ),
    layer_name=lambda i: f"mapping.fc{i}",
    conv_name=lambda i: f"synthesis.b{4 * 2 ** ((i + 1) // 2)}.conv{(i + 1) % 2}",
    rgb_name=lambda k: f"synthesis.b{4 * 2**k}.torgb",
    ignored={
        r"(G_ema\.)?synthesis\.(.*\.)?resample_filter": is_blur_filter,
        # The rest of a training snapshot.
        r"(G|D|augment_pipe)\..*": None,
    },
)


def convert(source: SourceFile) -> Conversion:
    """Converts a file by rosinality or NVIDIA to a generator.

    Raises:
        InputError: The file is not a StyleGAN2 generator, or is not supported: conditional, or with
            another architecture, filter or activation.
    """
    layout, prefix = _find_layout(source)
    _check_supported(source, prefix)
    table = make_table(source, layout, prefix)
    config = infer_config(source, table, prefix)
    has_mean = layout is NVIDIA or "latent_avg" in source.tensors
    if not has_mean:
        placeholder = {"latent_avg": np.zeros(config.w_dim)}
        source = source._replace(tensors=source.tensors | placeholder)
    model: Any = fill(Generator, config, source, table, layout.ignored)
    if has_mean:
        return Conversion(model)
    z = jax.random.normal(jax.random.key(0), (MEAN_SAMPLES, config.z_dim))
    model.mean_w[...] = jax.jit(lambda mapping, z: mapping(z).mean(0))(model.mapping, z)
    note = f"the file has no latent_avg; the mean latent is that of {MEAN_SAMPLES} samples"
    return Conversion(model, notes=(note,))


def make_table(source: SourceFile, layout: Layout, prefix: str) -> list[Row]:
    """The table of a generator, with the number of layers of the file."""
    table = expand(layout.once, p=prefix)
    for i in range(_count(source, prefix, layout.layer_name)):
        table += expand(layout.layer, p=prefix, name=layout.layer_name(i), i=i)
    # One convolution at 4 pixels, two at every higher resolution.
    blocks = _count(source, prefix, layout.conv_name) // 2 + 1
    for i in range(2 * blocks - 1):
        table += expand(layout.conv, p=prefix, name=layout.conv_name(i), i=i)
    for k in range(blocks):
        table += expand(layout.rgb, p=prefix, name=layout.rgb_name(k), i=k)
    return table


def infer_config(source: SourceFile, table: list[Row], prefix: str) -> GeneratorConfig:
    """Infers the architecture from shapes and, in NVIDIA's files, attributes.

    Raises:
        InputError: The architecture is not supported.
    """
    keys = {row.target: row.source for row in table}
    blocks = sum(target.startswith("synthesis.rgbs.") for target in keys) // 4
    channels = {}
    for k in range(blocks):
        bias = keys[f"synthesis.convs.{2 * k}.bias"]
        if bias in source.tensors:
            channels[4 * 2**k] = dimension(source, bias, 0, 0)
    channel_base, channel_max = _infer_channels(channels, source.name)
    clamp = _conv_clamp(source, prefix)
    try:
        return GeneratorConfig(
            resolution=4 * 2 ** (blocks - 1),
            z_dim=dimension(source, keys.get("mapping.layers.0.kernel", ""), 1, 512),
            w_dim=dimension(source, keys["synthesis.convs.0.affine.kernel"], 1, 512),
            mapping_layers=sum(target.startswith("mapping.layers.") for target in keys) // 2,
            channel_base=channel_base,
            channel_max=channel_max,
            conv_clamp=None if clamp is None else float(clamp),
            mapping_lr_multiplier=float(source.values.get(f"{prefix}mapping.fc0.bias_gain", 0.01)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{source.name}: {error}") from None


def _find_layout(source: SourceFile) -> tuple[Layout, str]:
    for layout in (ROSINALITY, NVIDIA):
        for prefix in layout.prefixes:
            if any(key.startswith(f"{prefix}{layout.conv_name(0)}.") for key in source.tensors):
                return layout, prefix
    if any(".synthesis.input." in key for key in source.tensors):
        raise InputError(f"{source.name} is a StyleGAN3 generator, expected a StyleGAN2")
    raise InputError(
        f"{source.name} is not a StyleGAN2 generator by rosinality or NVIDIA ({describe(source)})"
    )


def _count(source: SourceFile, prefix: str, name: Callable[[int], str]) -> int:
    """One more than the index of the last layer with a key in the file."""
    present = [
        i for i in range(32) if any(k.startswith(f"{prefix}{name(i)}.") for k in source.tensors)
    ]
    return max(present, default=-1) + 1


def _check_supported(source: SourceFile, prefix: str) -> None:
    """Raises InputError for NVIDIA generators that differ in more than their tensors."""
    if f"{prefix}mapping.embed.weight" in source.tensors:
        raise InputError(f"{source.name} is conditional (c_dim > 0), expected c_dim = 0")
    expected = {
        r"synthesis\.b\d+\.architecture": "skip",
        r"(synthesis\.b\d+\.conv\d|mapping\.fc\d+)\.activation": "lrelu",
    }
    for path, value in source.values.items():
        for pattern, only in expected.items():
            if re.fullmatch(re.escape(prefix) + pattern, path) and value != only:
                raise InputError(f"{source.name}: {path} is {value!r}, expected {only!r}")


def _conv_clamp(source: SourceFile, prefix: str) -> Any:
    # Each layer has its own; the constructor's default differs between NVIDIA's repositories.
    pattern = re.escape(prefix) + r"synthesis\.b\d+\.(conv\d|torgb)\.conv_clamp"
    clamps = {value for path, value in source.values.items() if re.fullmatch(pattern, path)}
    if len(clamps) > 1:
        raise InputError(f"{source.name} has the conv_clamp values {clamps}, expected only one")
    return clamps.pop() if clamps else None


def _infer_channels(channels: dict[int, int], name: str) -> tuple[int, int]:
    """The ``channel_max`` and the smallest ``channel_base`` that give these channels."""
    channel_max = max(channels.values(), default=512)
    channel_base = max((n * r for r, n in channels.items()), default=32768)
    if any(min(channel_base // r, channel_max) != n for r, n in channels.items()):
        raise InputError(
            f"{name} has channels {channels} by resolution, expected "
            "min(channel_base // resolution, channel_max)"
        )
    return channel_base, channel_max
