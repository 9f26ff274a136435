"""What CLIP sees of a generator's style channels: the basis of text directions.

Patashnik et al., arXiv 2103.17249, section 6. The *relevance* of a channel is the unit vector, in
CLIP's space, along which images move when the channel grows. The product with a text's direction
says how much the channel should change.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.models.mapper import MAX_LAYERS
from styleclip_jax.models.stylegan2 import Buffer, Generator

Space = Literal["stylespace", "w"]


@dataclasses.dataclass(frozen=True)
class DirectionsConfig:
    """What :class:`Directions` belong to.

    Attributes:
        style_dims: Widths of the generator's StyleSpace entries.
        w_dim: Length of the generator's w vectors.
        embed_dim: Width of CLIP's space.
        layers: Number of convolutions whose style channels are covered, from the first one on.
        space: ``"stylespace"``: a channel is an entry of a convolution's style, as in the paper;
            later convolutions and all ToRGB layers are never changed. ``"w"``: a channel is an
            entry of w, the same in all layers.
        scaled: Whether the channels' standard deviations are known; see :class:`Directions`.
        generator: Fingerprint of the generator; None: unknown, as in published files.
        clip: Fingerprint of the CLIP, likewise.
    """

    style_dims: Sequence[int]
    w_dim: int
    embed_dim: int
    layers: int
    space: Space = "stylespace"
    scaled: bool = True
    generator: str | None = None
    clip: str | None = None

    def __post_init__(self) -> None:
        # JSON knows no tuples, and the configuration has to stay hashable.
        object.__setattr__(self, "style_dims", tuple(self.style_dims))
        if not 1 < len(self.style_dims) <= MAX_LAYERS or min(self.style_dims) < 1:
            raise ValueError(f"style_dims are {self.style_dims}, expected those of a generator")
        for name in ("w_dim", "embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.space not in ("stylespace", "w"):
            raise ValueError(f"space is {self.space!r}, expected stylespace or w")
        if not 1 <= self.layers <= len(conv_entries(self.style_dims)):
            raise ValueError(
                f"layers is {self.layers}, expected the number of convolutions or less"
            )

    @property
    def channels(self) -> int:
        """Number of channels."""
        if self.space == "w":
            return self.w_dim
        return sum(self.style_dims[i] for i in conv_entries(self.style_dims)[: self.layers])


def conv_entries(style_dims: Sequence[int]) -> tuple[int, ...]:
    """Positions of the convolutions' styles in StyleSpace; the others are the ToRGB layers'."""
    return tuple(i for i in range(len(style_dims)) if i % 3 != 1)


class Directions(nnx.Module):
    """Relevance and scale of a generator's channels for a CLIP.

    Args:
        config: The generator's and CLIP's widths.
        rngs: Taken because every network has it.
        dtype: Likewise; the arrays are small and stay float32.

    Attributes:
        relevance: (channels, embed_dim), rows of unit length, or of zeros where a channel changes
            nothing that CLIP sees.
        scales: (channels,), standard deviations over random images; None where a published file
            does not have them. :func:`styleclip_jax.with_scales` measures them.
    """

    def __init__(self, config: DirectionsConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        del dtype, rngs
        self.config = config
        self.relevance = Buffer(jnp.zeros((config.channels, config.embed_dim)))
        self.scales = Buffer(jnp.ones((config.channels,))) if config.scaled else None

    def check_generator(self, generator: Generator) -> None:
        """Raises InputError unless a generator has the shape that the directions are for."""
        config = generator.config
        if (config.style_dims, config.w_dim) != (self.config.style_dims, self.config.w_dim):
            raise InputError(
                f"the directions are for a generator with StyleSpace widths"
                f" {list(self.config.style_dims)} and w of {self.config.w_dim}, this one has"
                f" {list(config.style_dims)} and {config.w_dim}"
            )

    def style_change(
        self, generator: Generator, change: Float[Array, " channels"]
    ) -> tuple[Float[Array, "1 _"], ...]:
        """The change of StyleSpace coordinates that a change of the channels makes."""
        dims = self.config.style_dims
        if self.config.space == "w":
            w = jnp.broadcast_to(change, (1, generator.num_layers, len(change)))
            moved, still = generator.styles(w), generator.styles(jnp.zeros_like(w))
            return jax.tree.map(jnp.subtract, moved, still)
        entries = [jnp.zeros((1, width)) for width in dims]
        start = 0
        for i in conv_entries(dims)[: self.config.layers]:
            entries[i] = change[None, start : start + dims[i]]
            start += dims[i]
        return tuple(entries)
