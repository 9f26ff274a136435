"""Relevance of a generator's style channels to CLIP, from which edits by a text are computed.

Patashnik et al., arXiv 2103.17249, section 6. The *relevance* of a channel is the unit vector along
which CLIP's image features move when the channel grows. Its product with a text's direction is the
change of the channel.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError, check_choices
from styleclip_jax.models.mapper import MAX_LAYERS
from styleclip_jax.models.stylegan2 import Generator, GeneratorConfig, conv_entries
from styleclip_jax.models.variables import Buffer

Space = Literal["stylespace", "w"]


@dataclasses.dataclass(frozen=True)
class DirectionsConfig:
    """Shape of :class:`Directions`, and the networks they were made with.

    Attributes:
        widths: Widths of the styles of the generator's convolutions from the first one on; the last
            ones may be missing. With ``space="w"``, only the width of w.
        embed_dim: Width of CLIP's embedding.
        space: ``"stylespace"``: a channel is an entry of a convolution's style, as in the paper;
            the styles of ToRGB layers and of missing convolutions never change. ``"w"``: a channel
            is an entry of w, and changes in all layers.
        scaled: Whether the channels' standard deviations are known; see :class:`Directions`.
        generator: Fingerprint of the generator. None: unknown, as in published files.
        clip: Fingerprint of the CLIP. None: unknown.
    """

    widths: Sequence[int]
    embed_dim: int
    space: Space = "stylespace"
    scaled: bool = True
    generator: str | None = None
    clip: str | None = None

    def __post_init__(self) -> None:
        # JSON has no tuples, but the configuration must be hashable.
        object.__setattr__(self, "widths", tuple(self.widths))
        if not 1 <= len(self.widths) <= MAX_LAYERS or min(self.widths) < 1:
            raise ValueError(
                f"widths are {self.widths}, expected 1 to {MAX_LAYERS} positive numbers"
            )
        if self.embed_dim < 1:
            raise ValueError(f"embed_dim is {self.embed_dim}, expected at least 1")
        check_choices(self, space=Space)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return sum(self.widths)


def channel_widths(config: GeneratorConfig, space: Space) -> tuple[int, ...]:
    """The widths of all channels of a generator, for :class:`DirectionsConfig`."""
    if space == "w":
        return (config.w_dim,)
    return tuple(config.style_dims[i] for i in conv_entries(config.style_dims))


class Directions(nnx.Module):
    """Relevance and scale of a generator's channels for a CLIP.

    Args:
        config: The widths of the channels and of CLIP's embedding.
        rngs: Ignored; all networks have this argument.
        dtype: Ignored; the arrays are small and stay float32.

    Attributes:
        relevance: (channels, embed_dim), rows of unit length; zeros for channels that do not affect
            CLIP's features.
        scales: (channels,), standard deviations over random images. None: unknown, as in published
            files; :func:`styleclip_jax.with_scales` measures them.
    """

    def __init__(self, config: DirectionsConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        del dtype, rngs
        self.config = config
        self.relevance = Buffer(jnp.zeros((config.channels, config.embed_dim)))
        self.scales = Buffer(jnp.ones((config.channels,))) if config.scaled else None

    def check_generator(self, generator: Generator) -> None:
        """Raises InputError if a generator does not have the directions' widths."""
        widths = channel_widths(generator.config, self.config.space)
        if widths[: len(self.config.widths)] != self.config.widths:
            raise InputError(
                f"the directions are for a generator with {self.config.space} widths"
                f" {list(self.config.widths)}, this generator has {list(widths)}; use the generator"
                " that they were made with"
            )

    def style_change(
        self, generator: Generator, change: Float[Array, " channels"]
    ) -> tuple[Float[Array, "1 _"], ...]:
        """Converts a change of the channels to a change of StyleSpace coordinates."""
        if self.config.space == "w":
            w = jnp.broadcast_to(change, (1, generator.num_layers, len(change)))
            moved, still = generator.styles(w), generator.styles(jnp.zeros_like(w))
            return jax.tree.map(jnp.subtract, moved, still)
        dims, widths = generator.config.style_dims, self.config.widths
        parts = jnp.split(change[None], np.cumsum(widths)[:-1], axis=1)
        convs = dict(zip(conv_entries(dims), parts, strict=False))
        return tuple(convs.get(i, jnp.zeros((1, width))) for i, width in enumerate(dims))
