"""Samples, synthesizes and compares latents."""

import functools
import os

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Key, PRNGKeyArray

from styleclip_jax.errors import InputError
from styleclip_jax.models.stylegan2 import Generator, StyleSpace

Latents = Float[Array, "batch layers w_dim"] | StyleSpace


def sample_latents(
    generator: Generator, num: int, seed: int, truncation: float = 0.7, redraw: float = 1.0
) -> Float[Array, "batch layers w_dim"]:
    """Samples W+ latents of random images.

    Args:
        generator: The generator.
        num: Number of images; a larger number only adds images.
        seed: Seed of the images.
        truncation: 1 is the full variety, lower values are closer to the mean image.
        redraw: Probability that an entry of ``z`` differs from that of the previous image. 1 gives
            independent images, lower values a walk along which images change gradually.

    Raises:
        InputError: ``num`` is not positive, the latents do not fit in this machine's memory, or
            they overflow because of ``truncation``.
    """
    if num < 1:
        raise InputError(f"the number of images is {num}, expected at least 1")
    config = generator.config
    needed = 4 * num * (config.z_dim + generator.num_layers * config.w_dim)
    # Unknown on Windows.
    known = hasattr(os, "sysconf")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else needed
    if needed > memory:
        raise InputError(
            f"the latents of {num} images need {needed // 2**30} GiB, but this machine has"
            f" {memory // 2**30} GiB; use fewer images"
        )
    key = jax.random.key(seed)
    z = _normal(key, num, config.z_dim)
    if redraw < 1:
        z = _redraw(key, z, redraw)
    latents = jax.jit(Generator.map)(generator, z, truncation)
    # Losses are sums of squares.
    if not isinstance(latents, Tracer) and not _sum_of_squares_is_finite(latents):
        raise InputError(
            f"truncation is {truncation}, which makes the latents overflow; use 0 to about 1"
        )
    return latents


def _keys(key: PRNGKeyArray, num: int) -> Key[Array, " num"]:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))


@functools.partial(jax.jit, static_argnames=("num", "z_dim"))
def _normal(key: PRNGKeyArray, num: int, z_dim: int) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, (z_dim,)))(_keys(key, num))


@jax.jit
def _redraw(key: PRNGKeyArray, z: Array, redraw: float | Float[Array, ""]) -> Array:
    """Replaces entries by those of the row before, with probability ``1 - redraw``."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(_keys(key, len(z)), 0)
    redrawn = jax.vmap(lambda key: jax.random.bernoulli(key, redraw, z.shape[1:]))(keys)
    rows = jax.lax.cummax(jnp.where(redrawn, jnp.arange(len(z))[:, None], 0), axis=0)
    return jnp.take_along_axis(z, rows, axis=0)


@jax.jit
def _sum_of_squares_is_finite(latents: Array) -> Array:
    return jnp.isfinite(jnp.sum(jnp.square(latents)))


def synthesize(
    generator: Generator, latents: Latents, resolution: int | None = None
) -> Float[Array, "batch height height 3"]:
    """Synthesizes images of W+ latents or StyleSpace coordinates.

    Args:
        generator: The generator.
        latents: W+ (B, layers, w_dim) or a tuple of StyleSpace coordinates.
        resolution: See :meth:`Generator.synthesize`.

    Returns:
        Images in about [-1, 1], not clipped.

    Raises:
        InputError: The latents do not match the generator, or it has no such resolution.
    """
    if isinstance(latents, tuple):
        return generator.synthesize(latents, resolution)
    return generator(latents, resolution)


def all_layers(
    generator: Generator, latents: Float[Array, "batch rows w_dim"]
) -> Float[Array, "batch layers w_dim"]:
    """W+ latents from one vector for all layers (B, 1, w_dim); those of W+ stay as they are."""
    return jnp.broadcast_to(latents, (len(latents), generator.num_layers, latents.shape[-1]))


def to_styles(generator: Generator, latents: Latents | list[Array]) -> StyleSpace:
    """The StyleSpace coordinates of latents of either kind."""
    return tuple(latents) if isinstance(latents, tuple | list) else generator.styles(latents)


def squared_distance(latents: Latents, others: Latents) -> Float[Array, " batch"]:
    """Squared Euclidean distance over all entries between latents of the same kind."""
    moved = jax.tree.map(lambda one, other: one - other, latents, others)
    return sum(
        (jnp.sum(jnp.square(x), axis=range(1, x.ndim)) for x in jax.tree.leaves(moved)),
        start=jnp.zeros(()),
    )
