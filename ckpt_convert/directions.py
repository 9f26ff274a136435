"""StyleCLIP's directions: ``fs3.npy``, and the standard deviations in ``S_mean_std``.

Sources: ``global_directions/SingleChannel.py`` and ``GetCode.py`` of orpatashnik/StyleCLIP.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ckpt_convert.formats import SourceFile
from ckpt_convert.tables import Conversion, describe
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import fingerprint
from styleclip_jax.methods.relevance import build_directions, channel_statistics
from styleclip_jax.models import DirectionsConfig, Generator, GeneratorConfig
from styleclip_jax.models.directions import channel_widths
from styleclip_jax.models.stylegan2 import conv_entries

_NO_SCALES = (
    "the directions have no scales; directions.py measures them at every start, which takes a few"
    " seconds. Convert again with --generator to store them"
)


def convert(
    source: SourceFile, scales: SourceFile | None = None, generator: Generator | None = None
) -> Conversion:
    """Converts an ``fs3.npy`` to directions.

    Args:
        source: The relevance (channels, embed_dim) of the convolutions' style channels, from the
            first layer on; the last layers may be missing.
        scales: ``S_mean_std``, written by the official ``GetCode.py``.
        generator: The generator that the directions are for; its scales are measured unless
            ``scales`` are given. None: a generator with the official widths at 1024 pixels.

    Raises:
        InputError: The file has other contents, or the channels are not those of whole layers.
    """
    relevance = source.tensors.get("")
    if relevance is None or relevance.ndim != 2 or relevance.dtype.kind != "f":
        raise InputError(
            f"{source.name}: expected an array (channels, features), but {describe(source)}"
        )
    if not np.isfinite(relevance).all():
        raise InputError(f"{source.name} has NaN or infinite values, expected finite numbers")
    model = generator.config if generator else GeneratorConfig()
    widths = _whole_layers(source.name, len(relevance), channel_widths(model, "stylespace"))
    config = DirectionsConfig(
        widths, relevance.shape[1], generator=fingerprint(generator) if generator else None
    )
    if scales is not None:
        stds = _read_scales(scales, conv_entries(model.style_dims)[: len(widths)], widths)
    elif generator is not None:
        stds = channel_statistics(generator, config).std
    else:
        stds = None
    directions = build_directions(config, relevance.astype(np.float32), stds)
    return Conversion(directions, notes=() if stds is not None else (_NO_SCALES,))


def _whole_layers(name: str, channels: int, widths: Sequence[int]) -> tuple[int, ...]:
    ends = [*itertools.accumulate(widths)]
    if channels not in ends:
        raise InputError(
            f"{name} has {channels} channels, expected {', '.join(map(str, ends[:-1]))} or"
            f" {ends[-1]}, the channels of the generator's first layers; give the generator that"
            " they are for with --generator"
        )
    return tuple(widths[: ends.index(channels) + 1])


def _read_scales(
    source: SourceFile, entries: Sequence[int], widths: Sequence[int]
) -> Float[np.ndarray, " channels"]:
    # [means, standard deviations], each with an array for every StyleSpace entry.
    layers = [source.tensors.get(f"1.{i}") for i in entries]
    for i, layer, width in zip(entries, layers, widths, strict=True):
        if (
            layer is None
            or layer.shape != (width,)
            or not (np.isfinite(layer) & (layer >= 0)).all()
        ):
            raise InputError(
                f"{source.name}: expected S_mean_std, with {width} standard deviations of layer"
                f" {i}, but {describe(source)}"
            )
    return np.concatenate([layer for layer in layers if layer is not None]).astype(np.float32)
