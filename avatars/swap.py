"""Edits by construction: the upper bound of what the avatars generator can do.

Every value of every attribute has its own entry of `w` (`avatars.train_generator`), so the
attributes of a random latent can be read, and a latent with another value can be written.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from avatars.attributes import NAMES, index, observe, with_value
from avatars.train_generator import CARDINALITIES, indicators, latent_scale, mean_indicators


def latents_of(
    attributes: Int8[Array | np.ndarray, "count slots"], truncation: float, num_layers: int
) -> Float[Array, "count layers w_dim"]:
    """The W+ latents of attributes, as given by the mapping network."""
    mean = np.asarray(mean_indicators())
    w = mean + truncation * (np.asarray(indicators(jnp.asarray(attributes))) - mean)
    w = latent_scale().astype(np.float32) * w
    return jnp.asarray(np.repeat(w[:, None], num_layers, axis=1))


def attributes_of(
    latents: Float[Array | np.ndarray, "count layers w_dim"],
) -> Int8[np.ndarray, "count slots"]:
    """The attributes of latents given by the mapping network, with any truncation."""
    w = np.asarray(latents)[:, 0]
    entries = np.split(w, np.cumsum(CARDINALITIES), axis=-1)[:-1]
    return np.stack([of_slot.argmax(-1) for of_slot in entries], axis=-1).astype(np.int8)


def swap(
    latents: Float[Array | np.ndarray, "count layers w_dim"],
    slot: str,
    value: str,
    truncation: float,
) -> Float[Array, "count layers w_dim"]:
    """Gives one attribute a new value and removes what would hide it.

    Args:
        latents: Latents given by the mapping network.
        slot: The slot to change.
        value: Its new value.
        truncation: Truncation of the latents.
    """
    wanted = with_value(attributes_of(latents), slot, value)
    if slot == "hair_color":
        # The hair color of a bald person is not visible without a beard.
        hidden = observe(wanted)[:, NAMES.index(slot)] != index(slot, value)
        wanted[hidden, NAMES.index("hair")] = index("hair", "short")
    return latents_of(wanted, truncation, np.shape(latents)[1])
