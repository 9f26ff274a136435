"""Perturbed latents of avatars, for images in CLIP's training.

Latents of attributes with noise in every layer, partly moved towards other values.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from avatars.train_generator import CARDINALITIES, CONFIG, indicators, latent_scale, mean_indicators


def perturbed_latents(
    attributes: Int[Array, "batch slots"], key: Key[Array, ""]
) -> Float[Array, "batch layers w_dim"]:
    """W+ latents near those of attributes."""
    keys = iter(jax.random.split(key, 8))
    batch, slots = attributes.shape

    def uniform(low: float, high: float, *shape: int) -> Array:
        return jax.random.uniform(next(keys), (batch, *shape), minval=low, maxval=high)

    # Up to a third of the way towards another value, in every third slot.
    others = (uniform(0, 1, slots) * jnp.asarray(CARDINALITIES)).astype(int)
    share = jnp.where(uniform(0, 1, slots) < 0.33, uniform(0, 0.33, slots), 0)
    share = jnp.repeat(share, np.array(CARDINALITIES), axis=1)
    share = jnp.pad(share, ((0, 0), (0, CONFIG.w_dim - share.shape[1])))
    w = indicators(attributes)
    w += share * (indicators(others) - w)
    w = mean_indicators() + uniform(0.6, 1.1, 1) * (w - mean_indicators())
    shared = uniform(0, 0.15, 1) * jax.random.normal(next(keys), w.shape)
    of_layers = jax.random.normal(next(keys), (batch, CONFIG.num_layers, CONFIG.w_dim))
    return jnp.asarray(latent_scale(), jnp.float32) * (
        (w + shared)[:, None] + uniform(0, 0.15, 1, 1) * of_layers
    )
