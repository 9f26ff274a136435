"""Computes the directions of a generator: how CLIP's features change with each style channel.

StyleCLIP (arXiv 2103.17249), section 6; official ``global_torch/SingleChannel.py``. Two methods:

* Finite differences, as published: synthesize every image with every channel at its mean plus and
  minus five standard deviations. 100 images and 6048 channels take 1.2 million syntheses.
* The Jacobian of CLIP's features, from one vector-Jacobian product per dimension of the embedding:
  512 per image instead of 12,096 syntheses. It measures only infinitesimal changes.

The computation is a sequence of items; its progress can be saved and resumed.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from styleclip_jax.errors import InputError, check_choices
from styleclip_jax.io.checkpoints import fingerprint
from styleclip_jax.losses import Preprocess, image_features
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.directions import (
    Directions,
    DirectionsConfig,
    Space,
    channel_widths,
)
from styleclip_jax.models.stylegan2 import Generator, conv_entries
from styleclip_jax.sharding import replicate, spread

# Official: code_mean and code_std of manipulate.py, GetCode.py.
NUM_SAMPLES, SAMPLES_SEED, TRUNCATION = 100_000, 5, 0.7
_CHUNK = 1000
Method = Literal["differences", "jacobian"]


@dataclasses.dataclass(frozen=True)
class RelevanceConfig:
    """Settings of :func:`relevance_steps`; the defaults are the official ones.

    Attributes:
        method: ``"differences"`` or ``"jacobian"``.
        space: See :class:`styleclip_jax.models.DirectionsConfig`.
        num_images: Number of images to average over.
        range: Finite differences are taken between this many standard deviations below and above
            the mean.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.
        guide_resolution: Encode images at this lower resolution; convolutions at higher resolutions
            then have no relevance. None: full resolution.
    """

    method: Method = "differences"
    space: Space = "stylespace"
    num_images: int = 100
    range: float = 5.0
    preprocess: Preprocess = "bicubic"
    guide_resolution: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, method=Method, space=Space, preprocess=Preprocess)
        if self.num_images < 1:
            raise InputError(f"num_images is {self.num_images}, expected at least 1")
        if not self.range > 0:
            raise InputError(f"range is {self.range}, expected a positive number")


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of every channel over random images; arrays (channels,)."""

    mean: Float[np.ndarray, " channels"]
    std: Float[np.ndarray, " channels"]


class Progress(NamedTuple):
    """Progress of the computation.

    Attributes:
        done: Number of finished items: images for the Jacobian, pairs of channel and image for
            differences.
        total: Sum over these images of the unit changes of CLIP's features.
    """

    done: int
    total: Float[np.ndarray, "channels embed"]


def directions_config(
    generator: Generator, clip: CLIP, config: RelevanceConfig
) -> DirectionsConfig:
    """Returns the configuration of the directions of a generator and a CLIP."""
    generator.config.check_guide_resolution(config.guide_resolution)
    guide = config.guide_resolution or generator.config.resolution
    layers = 2 * generator.config.resolutions.index(guide) + 1
    return DirectionsConfig(
        widths=channel_widths(generator.config, config.space)[:layers],
        embed_dim=clip.config.embed_dim,
        space=config.space,
        generator=fingerprint(generator),
        clip=fingerprint(clip),
    )


def channel_statistics(
    generator: Generator,
    config: DirectionsConfig,
    num_samples: int = NUM_SAMPLES,
    seed: int = SAMPLES_SEED,
    truncation: float = TRUNCATION,
) -> ChannelStatistics:
    """Computes mean and standard deviation of the channels over random images.

    Styles are affine in w, so they follow from the mean and covariance of w.

    Args:
        generator: The generator.
        config: Names the channels.
        num_samples: Number of random latents; no image is synthesized.
        seed: Seed of ``np.random.RandomState``, which the official code uses.
        truncation: See :meth:`Generator.map`.
    """
    rng = np.random.RandomState(seed)
    center = np.asarray(generator.mean_w[...], np.float64)
    total, squares = np.zeros_like(center), np.zeros((len(center), len(center)))
    sample = jax.jit(lambda generator, z: generator.map(z, truncation)[:, 0])
    for start in range(0, num_samples, _CHUNK):
        z = rng.randn(min(_CHUNK, num_samples - start), generator.config.z_dim)
        w = np.asarray(sample(generator, jnp.asarray(z, jnp.float32)), np.float64) - center
        total += w.sum(axis=0)
        squares += w.T @ w
    mean = total / num_samples
    covariance = squares / num_samples - np.outer(mean, mean)
    mean += center
    if config.space == "w":
        return ChannelStatistics(*_float32(mean, np.sqrt(np.diag(covariance))))

    def layer_styles(w: np.ndarray) -> list[np.ndarray]:
        w_plus = np.broadcast_to(w[:, None], (len(w), generator.num_layers, w.shape[1]))
        styles = jax.jit(Generator.styles)(generator, w_plus.astype(np.float32))
        entries = conv_entries(generator.config.style_dims)[: len(config.widths)]
        return [np.asarray(styles[i], np.float64) for i in entries]

    bias = np.concatenate(layer_styles(np.zeros((1, len(mean)))), axis=1)[0]
    kernel = np.concatenate(layer_styles(np.eye(len(mean))), axis=1) - bias
    variance = np.einsum("wc,wc->c", kernel, covariance @ kernel)
    return ChannelStatistics(*_float32(mean @ kernel + bias, np.sqrt(np.maximum(variance, 0))))


def _float32(*arrays: np.ndarray) -> list[np.ndarray]:
    return [x.astype(np.float32) for x in arrays]


def with_scales(directions: Directions, generator: Generator) -> Directions:
    """Returns directions with scales that are measured on a generator; takes seconds.

    Raises:
        InputError: The directions are for a generator of another shape.
    """
    directions.check_generator(generator)
    scales = channel_statistics(generator, directions.config).std
    return build_directions(directions.config, np.asarray(directions.relevance[...]), scales)


def build_directions(
    config: DirectionsConfig,
    relevance: Float[np.ndarray, "channels embed"],
    scales: Float[np.ndarray, " channels"] | None,
) -> Directions:
    """Builds directions from arrays.

    Raises:
        InputError: The arrays do not have the shapes of the configuration, or are not finite.
    """
    config = dataclasses.replace(config, scaled=scales is not None)
    for name, array, shape in (
        ("relevance", relevance, (config.channels, config.embed_dim)),
        ("scales", scales, (config.channels,)),
    ):
        if array is not None and array.shape != shape:
            raise InputError(f"{name} has shape {array.shape}, expected {shape}")
        if array is not None and not np.isfinite(array).all():
            raise InputError(f"{name} has NaN or infinite values")
    directions = Directions(config, rngs=nnx.Rngs(0))
    directions.relevance.set_value(jnp.asarray(relevance, jnp.float32))
    if directions.scales is not None:
        directions.scales.set_value(jnp.asarray(scales, jnp.float32))
    return directions


def num_items(channels: int, config: RelevanceConfig) -> int:
    """Number of items of :func:`relevance_steps`."""
    return config.num_images * (channels if config.method == "differences" else 1)


def relevance_steps(
    generator: Generator,
    clip: CLIP,
    config: RelevanceConfig,
    statistics: ChannelStatistics,
    progress: Progress | None = None,
    batch_size: int = 16,
) -> Iterator[Progress]:
    """Computes the relevance of all channels step by step, on all devices of this host.

    Args:
        generator: The generator; its fixed noise is used.
        clip: The CLIP.
        config: Settings.
        statistics: From :func:`channel_statistics`.
        progress: Progress to resume from. None: start from the beginning.
        batch_size: Number of images, or of products with the Jacobian, per device and step.

    Yields:
        The progress so far. The relevance is :func:`unit_rows` of the last total.
    """
    shape = (len(statistics.mean), clip.config.embed_dim)
    progress = progress or Progress(0, np.zeros(shape, np.float32))
    rng = np.random.RandomState(SAMPLES_SEED)
    z = rng.randn(config.num_images, generator.config.z_dim)
    latents = generator.map(jnp.asarray(z, jnp.float32), TRUNCATION)
    steps = _difference_steps if config.method == "differences" else _jacobian_steps
    yield from steps(
        replicate(generator), replicate(clip), latents, config, statistics, progress, batch_size
    )


def _difference_steps(
    generator, clip, latents, config, statistics, progress, batch_size
) -> Iterator[Progress]:
    done, total = progress.done, progress.total.copy()
    channels, images = len(total), len(latents)
    batch = batch_size * jax.local_device_count()
    program = functools.partial(_differences, space=config.space, **_seen(config))
    while done < channels * images:
        # The last item fills the last batch, so that one compiled program serves all batches.
        items = np.minimum(np.arange(done, done + batch), channels * images - 1)
        new = min(batch, channels * images - done)
        channel, image = np.divmod(items, images)
        offset = config.range * statistics.std[channel]
        ends = np.stack([statistics.mean[channel] - offset, statistics.mean[channel] + offset], 1)
        changes = program(generator, clip, *spread((latents[image], channel, ends)))
        np.add.at(total, channel[:new], np.asarray(changes)[:new])
        done += new
        yield Progress(done, total)


def _jacobian_steps(
    generator, clip, latents, config, statistics, progress, batch_size
) -> Iterator[Progress]:
    done, total = progress.done, progress.total.copy()
    devices, images = jax.local_device_count(), len(latents)
    cotangents = np.eye(total.shape[1], dtype=np.float32)
    program = functools.partial(_jacobian, space=config.space, **_seen(config))
    while done < images:
        image = np.minimum(np.arange(done, done + devices), images - 1)
        new = min(devices, images - done)
        batch = spread(latents[image])
        blocks = [
            np.asarray(program(generator, clip, batch, replicate(block)))
            for block in _blocks(cotangents, batch_size)
        ]
        # (images, embed, channels)
        rows = np.concatenate(blocks, axis=1)[:new, : len(cotangents)]
        total += sum(unit_rows(jacobian.T[: len(total)]) for jacobian in rows)
        done += new
        yield Progress(done, total)


def _blocks(cotangents: np.ndarray, size: int) -> list[np.ndarray]:
    """Splits cotangents into blocks of one size; the last one is padded with zeros."""
    padded = np.pad(cotangents, ((0, -len(cotangents) % size), (0, 0)))
    return np.split(padded, len(padded) // size)


def _seen(config: RelevanceConfig) -> dict:
    return {"preprocess": config.preprocess, "resolution": config.guide_resolution}


@functools.partial(jax.jit, static_argnames=("space", "preprocess", "resolution"))
def _differences(
    generator: Generator,
    clip: CLIP,
    latents: Float[Array, "batch layers w_dim"],
    channel: Int[Array, " batch"],
    ends: Float[Array, "batch 2"],
    *,
    space: Space,
    preprocess: Preprocess,
    resolution: int | None,
) -> Float[Array, "batch embed"]:
    """Unit changes of CLIP's features as one channel per image moves from end to end."""

    def at_end(latents: Array, channel: Array, end: Array) -> tuple[Array, ...]:
        values, put = _channels(generator, latents, space)
        return put(values.at[channel].set(end))

    each_end = jax.vmap(at_end, (None, None, 0))
    styles = jax.vmap(each_end)(latents, channel, ends)
    styles = jax.tree.map(lambda s: s.reshape(-1, s.shape[-1]), styles)
    features = _features(generator, clip, styles, preprocess, resolution)
    features = features.reshape(*ends.shape, -1)
    change = features[:, 1] - features[:, 0]
    length = jnp.linalg.norm(change, axis=-1, keepdims=True)
    return change / jnp.where(length == 0, 1.0, length)


@functools.partial(jax.jit, static_argnames=("space", "preprocess", "resolution"))
def _jacobian(
    generator: Generator,
    clip: CLIP,
    latents: Float[Array, "batch layers w_dim"],
    cotangents: Float[Array, "block embed"],
    *,
    space: Space,
    preprocess: Preprocess,
    resolution: int | None,
) -> Float[Array, "batch block channels"]:
    """Products of cotangents with the Jacobian of CLIP's features with respect to channels."""

    def products(latents: Array) -> Array:
        values, put = _channels(generator, latents, space)

        def features(values: Array) -> Array:
            styles = jax.tree.map(lambda s: s[None], put(values))
            return _features(generator, clip, styles, preprocess, resolution)[0]

        _, pullback = jax.vjp(features, values)
        return jax.vmap(lambda cotangent: pullback(cotangent)[0])(cotangents)

    return jax.vmap(products)(latents)


def _features(generator, clip, styles, preprocess, resolution) -> Float[Array, "batch embed"]:
    """CLIP's unit features of the images of styles."""
    return image_features(clip, generator.synthesize(styles, resolution), preprocess)


def _channels(
    generator: Generator, latents: Float[Array, "layers w_dim"], space: Space
) -> tuple[Float[Array, " channels"], Callable[[Array], tuple[Array, ...]]]:
    """The channels of one image, and a function from changed channels to styles, (C_i,) each."""

    def styles_of(w_plus: Array) -> tuple[Array, ...]:
        return jax.tree.map(lambda s: s[0], generator.styles(w_plus[None]))

    if space == "w":
        return latents[0], lambda w: styles_of(jnp.broadcast_to(w, latents.shape))
    styles = styles_of(latents)
    entries = conv_entries(generator.config.style_dims)
    ends = np.cumsum([len(styles[i]) for i in entries])

    def put(values: Array) -> tuple[Array, ...]:
        convs = dict(zip(entries, jnp.split(values, ends[:-1]), strict=True))
        return tuple(convs.get(i, style) for i, style in enumerate(styles))

    return jnp.concatenate([styles[i] for i in entries]), put


def unit_rows(rows: Float[np.ndarray, "rows embed"]) -> Float[np.ndarray, "rows embed"]:
    """Scales rows to unit length, except rows of zeros."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length == 0, 1, length)
