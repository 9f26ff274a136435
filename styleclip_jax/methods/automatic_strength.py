"""The strength of an edit that suits an image best, as CLIP sees it."""

from collections.abc import Callable, Sequence

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
    features: Callable[[Float[Array, ""]], Float[Array, "batch embed"]],
    before: Float[Array, "batch embed"],
    direction: Float[Array, " embed"],
    strengths: Sequence[float],
) -> Float[Array, " batch"]:
    """The strength with the lowest :func:`styleclip_jax.losses.direction_loss`, for every image.

    Args:
        features: CLIP's unit features of the images that are edited with a strength.
        before: Those of the images before the edit, which stand for strength 0.
        direction: Unit direction of the text.
        strengths: The candidates except 0.
    """
    # One batch of all candidates. A loop in the program would run convolutions on one thread of a
    # CPU, and without a loop the networks would be compiled once for every candidate.
    edited = jax.vmap(features)(jnp.asarray(strengths, jnp.float32))
    every = jnp.concatenate([before[None], edited])
    losses = change_loss(every, before, direction, _ORTHOGONAL_LAMBDA)
    best = jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf), axis=0)
    return jnp.asarray([0.0, *strengths])[best]
