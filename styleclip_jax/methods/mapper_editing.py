"""Editing with trained mappers (StyleCLIP, section 5)."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import fingerprint
from styleclip_jax.latents import Latents, synthesize
from styleclip_jax.models.delta_mapper import DeltaMapper
from styleclip_jax.models.mapper import Mapper
from styleclip_jax.models.stylegan2 import Generator

# Latents in the host's memory.
HostLatents = Float[np.ndarray, "batch layers w_dim"] | tuple[Float[np.ndarray, "batch _"], ...]


def apply_mapper(
    generator: Generator,
    mapper: Mapper | DeltaMapper | Sequence[Mapper | DeltaMapper],
    latents: Latents | HostLatents,
    strength: float | Float[Array, ""] | None = None,
) -> tuple[Float[Array, "batch resolution resolution 3"], Latents]:
    """Edits latents with a mapper; compiled once for all strengths and texts.

    Warns if a mapper was trained with another generator of the same architecture.

    Args:
        generator: Synthesizes the images.
        mapper: The mapper, or several whose residuals are added.
        latents: W+ (B, L, w_dim) or StyleSpace; converted from W+ for a StyleSpace mapper.
        strength: Factor of the residual; negative values edit in the opposite direction. None: the
            strength that each mapper was trained with.

    Returns:
        The edited images (B, R, R, 3) in about [-1, 1], and the edited latents.

    Raises:
        InputError: The mapper is for another generator, for the other latent space, or for any
            text.
    """
    mappers: tuple[Any, ...] = tuple(mapper) if isinstance(mapper, Sequence) else (mapper,)
    strengths = tuple(m.config.card.strength if strength is None else strength for m in mappers)
    edit = edit_with_mappers(generator, mappers, cast(Latents, latents), strengths)
    for m in mappers:
        if message := foreign_generator(m, generator):
            warnings.warn(message, stacklevel=2)
    return edit


@jax.jit
def edit_with_mappers(
    generator: Generator,
    mappers: Sequence[Mapper | DeltaMapper],
    latents: Latents,
    strengths: Sequence[float | Float[Array, ""]],
) -> tuple[Float[Array, "batch resolution resolution 3"], Latents]:
    """The compiled program of :func:`apply_mapper`, with a strength for each mapper."""
    if not mappers:
        raise InputError("there is no mapper to apply; pass at least one")
    if any(isinstance(m, DeltaMapper) for m in mappers):
        raise InputError(
            "a mapper for any text needs the direction of a text; use edit_with_delta_mapper"
        )
    if isinstance(latents, list):
        latents = tuple(latents)
    spaces = {m.space for m in mappers if not isinstance(m, DeltaMapper)}
    if len(spaces) != 1:
        raise InputError(
            "mappers of W+ and of StyleSpace cannot be added; apply them one after the other"
        )
    if spaces == {"stylespace"} and not isinstance(latents, tuple):
        latents = generator.styles(latents)
    check_space(mappers[0], latents)
    edited = latents
    for m, strength in zip(mappers, strengths, strict=True):
        residual = cast(Any, m)(latents)
        edited = jax.tree.map(lambda w, r, s=strength: w + s * r, edited, residual)
    return synthesize(generator, edited), edited


def foreign_generator(mapper: Mapper | DeltaMapper, generator: Generator) -> str | None:
    """Returns a warning if a mapper is known to be trained with another generator, or None."""
    card = mapper.config.card
    # Values are unknown while a caller's program is traced.
    if card.generator is None or any(isinstance(x, Tracer) for x in jax.tree.leaves(generator)):
        return None
    if card.generator == fingerprint(generator):
        return None
    name = f" of {card.text!r}" if card.text else ""
    return f"the mapper{name} was trained with another generator; its edits may fail here"


def check_space(mapper: Any, latents: Latents) -> None:
    """Raises InputError unless a mapper edits latents of this space."""
    given = "stylespace" if isinstance(latents, tuple) else "w_plus"
    if mapper.space != given:
        raise InputError(f"latents are in {given}, expected {mapper.space} for this mapper")
