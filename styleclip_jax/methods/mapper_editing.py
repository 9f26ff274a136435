"""Editing with trained mappers (StyleCLIP, section 5)."""

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.latents import Latents, synthesize
from styleclip_jax.models.delta_mapper import DeltaMapper
from styleclip_jax.models.mapper import Mapper
from styleclip_jax.models.stylegan2 import Generator


@jax.jit
def apply_mapper(
    generator: Generator,
    mapper: Mapper | DeltaMapper | Sequence[Mapper | DeltaMapper],
    latents: Latents,
    strength: float | Float[Array, ""] = 0.1,
) -> tuple[Float[Array, "batch resolution resolution 3"], Latents]:
    """Edits latents with a mapper; compiled once for all strengths.

    Args:
        generator: Synthesizes the images.
        mapper: The mapper, or several whose residuals are added.
        latents: W+ (B, L, w_dim) or StyleSpace; converted from W+ for a StyleSpace mapper.
        strength: Factor of the residual; negative values edit in the opposite direction.

    Returns:
        The edited images (B, R, R, 3) in about [-1, 1], and the edited latents.

    Raises:
        InputError: The mapper is for another generator, for the other latent space, or for any
            text.
    """
    mappers: tuple[Any, ...] = tuple(mapper) if isinstance(mapper, Sequence) else (mapper,)
    if not mappers:
        raise InputError("there is no mapper to apply; pass at least one")
    if any(isinstance(m, DeltaMapper) for m in mappers):
        raise InputError(
            "a mapper for any text needs the direction of a text; use edit_with_delta_mapper"
        )
    if isinstance(latents, list):
        latents = tuple(latents)
    spaces = {m.space for m in mappers}
    if len(spaces) != 1:
        raise InputError(
            "mappers of W+ and of StyleSpace cannot be added; apply them one after the other"
        )
    if spaces == {"stylespace"} and not isinstance(latents, tuple):
        latents = generator.styles(latents)
    check_space(mappers[0], latents)
    edited = latents
    for m in mappers:
        edited = jax.tree.map(lambda w, r: w + strength * r, edited, m(latents))
    return synthesize(generator, edited), edited


def check_space(mapper: Any, latents: Latents) -> None:
    """Raises InputError unless a mapper edits latents of this space."""
    given = "stylespace" if isinstance(latents, tuple) else "w_plus"
    if mapper.space != given:
        raise InputError(f"latents are in {given}, expected {mapper.space} for this mapper")
