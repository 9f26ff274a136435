"""The strength of an edit that suits an image best, as CLIP sees it."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from styleclip_jax.losses import change_loss

# The weight of what the text does not mention; as in optimization.
_ORTHOGONAL_LAMBDA = 0.35


def lowest_loss(
    features: Callable[[float], Float[Array, "batch embed"]],
    direction: Float[Array, " embed"],
    strengths: Sequence[float],
) -> Float[Array, " batch"]:
    """The strength with the lowest :func:`styleclip_jax.losses.direction_loss`, for every image.

    Args:
        features: CLIP's unit features of the images that are edited with a strength.
        direction: Unit direction of the text.
        strengths: The candidates; the first leaves the images unchanged.
    """
    # Not a loop in the program, which would run convolutions on one thread of a CPU.
    every = jnp.stack([features(strength) for strength in strengths])
    losses = change_loss(every, every[0], direction, _ORTHOGONAL_LAMBDA)
    best = jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf), axis=0)
    return jnp.asarray(strengths)[best]
