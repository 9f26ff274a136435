"""Editing with a mapper for any text (DeltaEdit, arXiv 2303.06285, section 3.4)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from styleclip_jax.errors import InputError
from styleclip_jax.latents import Latents, to_styles
from styleclip_jax.losses import image_features, unit
from styleclip_jax.methods.automatic_strength import comparison_resolution, lowest_loss
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.delta_mapper import DeltaMapper
from styleclip_jax.models.directions import Directions
from styleclip_jax.models.stylegan2 import Generator, StyleSpace

# The official default.
THRESHOLD = 0.03
# What :func:`best_delta_strengths` tries, besides 0.
_AUTOMATIC_STRENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0, 2.5)


class DeltaEdit(NamedTuple):
    """Edited images.

    Attributes:
        images: (B, R, R, 3) in about [-1, 1].
        styles: Their StyleSpace coordinates.
    """

    images: Float[Array, "batch resolution resolution 3"]
    styles: StyleSpace


class DeltaChange(NamedTuple):
    """What a mapper changes in images, before a strength multiplies it.

    Attributes:
        styles: StyleSpace coordinates of the images before the edit.
        residual: Their change at strength 1.
        features: CLIP's unit features of the images before the edit.
        changed: Number of changed channels of each image.
        largest: The largest change of each image's channels, before ``min_change`` is applied.
    """

    styles: StyleSpace
    residual: StyleSpace
    features: Float[Array, "batch embed"]
    changed: Int[Array, " batch"]
    largest: Float[Array, " batch"]


@jax.jit
def edit_with_delta_mapper(
    generator: Generator,
    mapper: DeltaMapper,
    clip: CLIP,
    latents: Latents,
    dt: Float[Array, " embed"],
    strength: float | Float[Array, ""] | Float[Array, " batch"] | None = 1.0,
    *,
    directions: Directions | None = None,
    threshold: float | Float[Array, ""] = THRESHOLD,
    min_change: float | Float[Array, ""] = 0.0,
) -> DeltaEdit:
    """Edits images with a mapper for any text; compiled once for all texts and strengths.

    CLIP encodes the original images, so an edit synthesizes twice. Differentiable in latents,
    ``dt`` and strength.

    Args:
        generator: The generator that the mapper was trained with.
        mapper: The mapper.
        clip: The CLIP that the mapper was trained with.
        latents: W+ (B, L, w_dim) or StyleSpace.
        dt: Direction of a text, from :func:`styleclip_jax.text_direction`.
        strength: Factor of the mapper's residual, one for all images or one for each; negative
            values edit in the opposite direction. None: that of :func:`best_delta_strengths`.
        directions: If given, only channels that are relevant to the text change; channels that the
            directions do not cover never do.
        threshold: Minimum relevance of such channels. The official code compares 0.03 with products
            of the texts' difference before it is scaled to unit length.
        min_change: Channels whose change is smaller, before ``strength`` multiplies it, do not
            change; larger values preserve more of the image. Needs no directions.

    Raises:
        InputError: The models and the latents do not match.
    """
    change = predict_change(generator, mapper, clip, latents, dt, directions, threshold, min_change)
    used = strength
    if used is None:
        used = best_strengths_of_change(generator, mapper, clip, change, dt)
    return _edit(generator, change.styles, change.residual, used)


@jax.jit
def best_delta_strengths(
    generator: Generator,
    mapper: DeltaMapper,
    clip: CLIP,
    latents: Latents,
    dt: Float[Array, " embed"],
    *,
    directions: Directions | None = None,
    threshold: float | Float[Array, ""] = THRESHOLD,
    min_change: float | Float[Array, ""] = 0.0,
) -> Float[Array, " batch"]:
    """The strength of :func:`edit_with_delta_mapper` that suits each image best, as CLIP sees it.

    Of 0 and some strengths from 0.75 to 2.5, the one with the lowest
    :func:`styleclip_jax.losses.direction_loss`; an image that already shows what the text says may
    get 0. Arguments as for :func:`edit_with_delta_mapper`. Takes a forward pass of CLIP for
    each strength, and of the generator up to the resolution that CLIP sees.
    """
    change = predict_change(generator, mapper, clip, latents, dt, directions, threshold, min_change)
    return best_strengths_of_change(generator, mapper, clip, change, dt)


@jax.jit
def predict_change(
    generator: Generator,
    mapper: DeltaMapper,
    clip: CLIP,
    latents: Latents,
    dt: Float[Array, " embed"],
    directions: Directions | None = None,
    threshold: float | Float[Array, ""] = THRESHOLD,
    min_change: float | Float[Array, ""] = 0.0,
) -> DeltaChange:
    """Predicts the change of an edit; arguments as for :func:`edit_with_delta_mapper`."""
    styles = to_styles(generator, latents)
    features = image_features(clip, generator.synthesize(styles), mapper.config.preprocess)
    if dt.shape != features.shape[1:]:
        raise InputError(f"dt has shape {dt.shape}, this CLIP needs {features.shape[1:]}")
    # Sharded like the features.
    directions_of_images = jnp.zeros_like(features) + dt
    residual = mapper(styles, features, directions_of_images)
    if directions is not None:
        residual = jax.tree.map(
            jnp.multiply, residual, _relevant(generator, directions, dt, threshold)
        )
    largest = jnp.max(jnp.abs(jnp.concatenate(residual, axis=1)), axis=1)
    residual = _at_least(residual, min_change)
    changed = jnp.sum(jnp.concatenate(residual, axis=1) != 0, axis=1)
    return DeltaChange(styles, residual, features, changed, largest)


@jax.jit
def best_strengths_of_change(
    generator: Generator,
    mapper: DeltaMapper,
    clip: CLIP,
    change: DeltaChange,
    dt: Float[Array, " embed"],
) -> Float[Array, " batch"]:
    """:func:`best_delta_strengths` of a known change."""
    resolution = comparison_resolution(generator, clip)

    def encode(styles: StyleSpace) -> Float[Array, "candidates embed"]:
        images = generator.synthesize(styles, resolution)
        return image_features(clip, images, mapper.config.preprocess)

    def features(images: Any, strengths: Float[Array, " candidates"]) -> Array:
        styles, residual = images
        return encode(_move(styles, residual, strengths))

    known = resolution == generator.config.resolution
    before = change.features if known else encode(change.styles)
    images = change.styles, change.residual
    return lowest_loss(features, images, before, unit(dt), _AUTOMATIC_STRENGTHS)


@jax.jit
def move_styles(
    change: DeltaChange, strength: float | Float[Array, ""] | Float[Array, " batch"]
) -> StyleSpace:
    """StyleSpace coordinates of the edited images."""
    return _move(change.styles, change.residual, strength)


def _at_least(residual: StyleSpace, min_change: float | Float[Array, ""]) -> StyleSpace:
    return jax.tree.map(lambda r: jnp.where(jnp.abs(r) < min_change, 0.0, r), residual)


def _relevant(
    generator: Generator, directions: Directions, dt: Array, threshold: float | Array
) -> tuple[Float[Array, "1 _"], ...]:
    """1 for channels that are relevant to a text, 0 for the others."""
    if directions.config.space != "stylespace":
        raise InputError(
            f"the directions are for {directions.config.space}, a mapper for any text needs"
            " directions for stylespace; make them with make_directions.py --space=stylespace"
        )
    directions.check_generator(generator)
    products = jnp.matmul(directions.relevance[...], dt, precision=jax.lax.Precision.HIGHEST)
    return directions.style_change(generator, (jnp.abs(products) >= threshold).astype(dt.dtype))


@jax.jit
def apply_delta_mapper(
    generator: Generator,
    mapper: DeltaMapper,
    styles: StyleSpace,
    features: Float[Array, "batch embed"],
    direction: Float[Array, "batch embed"],
    strength: float | Float[Array, ""] = 1.0,
) -> DeltaEdit:
    """Edits images with known CLIP features, with one direction per image."""
    return _edit(generator, styles, mapper(styles, features, direction), strength)


def _edit(
    generator: Generator, styles: StyleSpace, residual: StyleSpace, strength: float | Array
) -> DeltaEdit:
    edited = _move(styles, residual, strength)
    return DeltaEdit(generator.synthesize(edited), edited)


def _move(styles: StyleSpace, residual: StyleSpace, strength: float | Array) -> StyleSpace:
    strength = jnp.reshape(jnp.asarray(strength, jnp.float32), (-1, 1))
    return jax.tree.map(lambda s, r: s + strength * r, styles, residual)
