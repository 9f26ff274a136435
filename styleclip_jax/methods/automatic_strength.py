"""The strength of an edit that suits an image best, as CLIP sees it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from styleclip_jax.losses import change_loss
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.stylegan2 import Generator

# The weight of what the text does not mention; as in optimization.
_ORTHOGONAL_LAMBDA = 0.35


def comparison_resolution(generator: Generator, clip: CLIP) -> int:
    """The lowest resolution of the generator with all the detail that CLIP sees.

    Candidates are compared there: at 1024 px with a CLIP for 224 px, a quarter of each side.
    """
    enough = (r for r in generator.config.resolutions if r >= clip.config.image_size)
    return min(enough, default=generator.config.resolution)


def lowest_loss(
    features: Callable[[Any, Float[Array, " candidates"]], Float[Array, "candidates embed"]],
    images: Any,
    before: Float[Array, "batch embed"],
    direction: Float[Array, " embed"],
    strengths: Sequence[float],
) -> Float[Array, " batch"]:
    """The strength with the lowest :func:`styleclip_jax.losses.direction_loss`, for every image.

    Args:
        features: Maps images and the strength of each one to CLIP's unit features of the edited
            images.
        images: What ``features`` needs of the images, a pytree of arrays (B, ...).
        before: CLIP's unit features before the edit, which stand for strength 0.
        direction: Unit direction of the text.
        strengths: The candidates except 0.
    """
    batch, count = len(before), len(strengths)

    def repeat(x: Array) -> Array:
        repeated = jnp.broadcast_to(x[:, None], (batch, count, *x.shape[1:]))
        return repeated.reshape(batch * count, *x.shape[1:])

    # One batch of all candidates. A loop in the program would run convolutions on one thread of a
    # CPU, and without a loop the networks would be compiled once for every candidate. An image's
    # candidates are neighbors, so that devices that share the images exchange nothing.
    each = jnp.zeros_like(before[:, :1]) + jnp.asarray(strengths, before.dtype)
    edited = features(jax.tree.map(repeat, images), each.reshape(batch * count))
    edited = jnp.moveaxis(edited.reshape(batch, count, edited.shape[-1]), 1, 0)
    losses = change_loss(
        jnp.concatenate([before[None], edited]), before, direction, _ORTHOGONAL_LAMBDA
    )
    best = jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf), axis=0)
    # Not an index, which explicitly sharded arrays do not support.
    chosen = jnp.arange(1, count + 1) == best[:, None]
    return jnp.sum(jnp.where(chosen, each, 0.0), axis=1)
