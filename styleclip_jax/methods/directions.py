"""Global directions: a text is mapped to one change of style channels for all images.

StyleCLIP (arXiv 2103.17249), section 6; official ``global_torch/StyleCLIP.py``. The relevance of
the channels is computed once per generator and CLIP, by :mod:`styleclip_jax.methods.relevance`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import fingerprint
from styleclip_jax.io.text import Tokenizer, encode_texts
from styleclip_jax.latents import Latents, synthesize, to_styles
from styleclip_jax.losses import Preprocess, image_features, unit
from styleclip_jax.methods.automatic_strength import comparison_resolution, lowest_loss
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.directions import Directions
from styleclip_jax.models.stylegan2 import Generator, StyleSpace

# Defaults of the official sliders, whose ranges are -10 to 10 and 0.08 to 0.3.
STRENGTH, THRESHOLD = 4.1, 0.15


class DirectionDefaults(NamedTuple):
    """Settings that suit a generator.

    Attributes:
        strength: See :func:`edit_with_direction`. None: chosen by :func:`best_strengths`.
        threshold: See :func:`edit_with_direction`. None: chosen by :func:`automatic_threshold`.
        min_channels: ``channels`` of :func:`automatic_threshold`.
    """

    strength: float | None = STRENGTH
    threshold: float | None = None
    min_channels: int = 20


# Candidates of :func:`best_strengths`, besides 0.
_AUTOMATIC_STRENGTHS = (2.0, 3.0, 4.0, 5.0, 6.0)
# From the most to the least disentangled edit.
_AUTOMATIC_THRESHOLDS = (np.arange(29, 9, -1) / 100).astype(np.float32)


class NoChannelError(InputError):
    """No channel reaches the threshold.

    Args:
        threshold: The threshold given.
        largest: The largest threshold that keeps a channel.
    """

    def __init__(self, threshold: float, largest: float):
        super().__init__(
            f"no channel reaches the threshold {threshold:g}; use one of at most {largest:.3f}"
        )
        self.largest = largest


class DirectionEdit(NamedTuple):
    """Edited images.

    Attributes:
        images: (B, R, R, 3) in about [-1, 1].
        styles: Their StyleSpace coordinates.
        changed: Number of changed channels.
    """

    images: Float[Array, "batch resolution resolution 3"]
    styles: StyleSpace
    changed: Int[Array, ""]


def text_direction(
    clip: CLIP,
    tokenizer: Tokenizer,
    text: str,
    neutral: str,
    templates: Sequence[str] = (),
) -> Float[Array, " embed"]:
    """Returns the unit direction from a neutral text to a text in CLIP's embedding space.

    Args:
        clip: Encodes the texts.
        tokenizer: The CLIP's tokenizer.
        text: Describes the edited images.
        neutral: Describes all images, before and after the edit, such as "a face".
        templates: See :func:`styleclip_jax.encode_texts`. General CLIPs need
            ``styleclip_jax.io.templates.IMAGENET_TEMPLATES``, as in the official code.

    Raises:
        InputError: The CLIP encodes both texts identically.
    """
    difference, length = _difference(encode_texts(clip, tokenizer, [text, neutral], templates))
    if length < 1e-4:
        raise InputError(
            f"{text!r} and the neutral text {neutral!r} are the same to this CLIP, so there is no"
            " direction; use other words"
        )
    return difference


@jax.jit
def _difference(features: Float[Array, "2 embed"]) -> tuple[Array, Array]:
    features = unit(features)
    difference = features[0] - features[1]
    length = jnp.linalg.norm(difference)
    return difference / length, length


def edit_with_direction(
    generator: Generator,
    directions: Directions,
    latents: Latents,
    dt: Float[Array, " embed"] | Float[Array, "texts embed"],
    strength: float | Float[Array, ""] | Float[Array, " batch"] = STRENGTH,
    threshold: float | Float[Array, ""] = THRESHOLD,
) -> DirectionEdit:
    """Edits images along the direction of a text; compiled once for all texts and settings.

    With the relevance ``R`` and the scales ``sigma`` of the channels, ``r = R dt``. Entries of
    ``r`` below the threshold are set to zero, the others are divided by the largest, and the styles
    become ``s + strength * sigma * r``. Differentiable in latents, ``dt`` and strength.

    Args:
        generator: The generator.
        directions: The generator's directions, made with the CLIP that encoded the text.
        latents: W+ (B, L, w_dim) or StyleSpace.
        dt: From :func:`text_direction`; the changes of several texts are added.
        strength: Strength of the edit, one for all images or one per image; negative values edit in
            the opposite direction.
        threshold: Channels whose product with ``dt`` is smaller do not change; larger values
            preserve more of the image.

    Raises:
        InputError: No channel reaches the threshold, or models and latents do not match.
            Under an outer ``jax.jit`` the threshold is not checked, and the images stay the same if
            no channel reaches it.
    """
    _check(generator, directions)
    edit = _edit(generator, directions, latents, jnp.atleast_2d(dt), strength, threshold)
    _require_change(edit.changed, directions, dt, threshold)
    return edit


def best_strengths(
    generator: Generator,
    directions: Directions,
    clip: CLIP,
    latents: Latents,
    dt: Float[Array, " embed"] | Float[Array, "texts embed"],
    threshold: float | Float[Array, ""] = THRESHOLD,
    preprocess: Preprocess = "styleclip",
) -> Float[Array, " batch"]:
    """Chooses the strength of :func:`edit_with_direction` for each image with CLIP.

    Compares 0, 2, 3, 4, 5 and 6 and takes the strength with the lowest
    :func:`styleclip_jax.losses.direction_loss`. An image that already fits the text may get 0. Each
    strength costs a forward pass of CLIP, and of the generator up to the resolution that CLIP sees.

    Args:
        generator: The generator.
        directions: The generator's directions.
        clip: The CLIP that encoded the text.
        latents: W+ (B, L, w_dim) or StyleSpace.
        dt: From :func:`text_direction`; of several texts, the sum of their directions is compared.
        threshold: See :func:`edit_with_direction`.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.
    """
    latents = _in_space(generator, directions, latents)
    return _best_strengths(
        generator, directions, clip, latents, jnp.atleast_2d(dt), threshold, preprocess=preprocess
    )


def move_latents(
    generator: Generator,
    directions: Directions,
    latents: Latents,
    dt: Float[Array, " embed"] | Float[Array, "texts embed"],
    strength: float | Float[Array, ""] | Float[Array, " batch"],
    threshold: float | Float[Array, ""],
) -> tuple[Latents, Int[Array, ""]]:
    """Edits latents as :func:`edit_with_direction` does, without synthesizing images.

    Returns:
        The edited latents and the number of changed channels. The latents are in W+ if the given
        latents are and the directions are for ``w``, otherwise in StyleSpace.

    Raises:
        InputError: See :func:`edit_with_direction`.
    """
    latents = _in_space(generator, directions, latents)
    moved, changed = _move(generator, directions, latents, jnp.atleast_2d(dt), strength, threshold)
    _require_change(changed, directions, dt, threshold)
    return moved, changed


def _in_space(generator: Generator, directions: Directions, latents: Latents) -> Latents:
    """Makes StyleSpace of W+ latents if the directions need it.

    Separately, so that latents of both kinds share the programs that synthesize images.
    """
    _check(generator, directions)
    in_w = directions.config.space == "w"
    return latents if in_w else jax.jit(to_styles)(generator, latents)


def _check(generator: Generator, directions: Directions) -> None:
    directions.check_generator(generator)
    if directions.scales is None:
        raise InputError(
            "the directions have no scales (published files have none); measure them with"
            " styleclip_jax.with_scales"
        )


def _require_change(changed: Array, directions: Directions, dt: Array, threshold: Any) -> None:
    if not isinstance(changed, Tracer) and changed == 0:
        largest = np.abs(_products(directions, jnp.atleast_2d(dt))).max(initial=0)
        raise NoChannelError(float(threshold), np.floor(1000 * float(largest)) / 1000)


def check_fingerprints(directions: Directions, generator: Generator, clip: CLIP) -> None:
    """Raises InputError if directions were made for another generator or CLIP."""
    directions.check_generator(generator)
    if directions.config.embed_dim != clip.config.embed_dim:
        raise InputError(
            f"the directions are for a CLIP with {directions.config.embed_dim} features, this CLIP"
            f" has {clip.config.embed_dim}; use the CLIP that they were made with"
        )
    for name, model in (("generator", generator), ("clip", clip)):
        known = getattr(directions.config, name)
        if known and known != fingerprint(model):
            raise InputError(
                f"the directions were made for another {name.replace('clip', 'CLIP')} of the same"
                " shape; use that one, or make directions for this one with make_directions.py"
            )


@jax.jit
def _edit(generator, directions, latents, dt, strength, threshold) -> DirectionEdit:
    styles = to_styles(generator, latents)
    styles, changed = _move(generator, directions, styles, dt, strength, threshold)
    return DirectionEdit(generator.synthesize(styles), styles, changed)


@jax.jit
def _move(generator, directions, latents, dt, strength, threshold) -> tuple[Latents, Array]:
    weights = channel_weights(directions, dt, threshold)
    change = weights * directions.scales[...]
    strength = jnp.reshape(jnp.asarray(strength, jnp.float32), (-1, 1))
    changed = jnp.sum(weights != 0)
    if not isinstance(latents, tuple):
        return latents + (strength * change)[:, None], changed
    changes = directions.style_change(generator, change)
    return jax.tree.map(lambda s, d: s + strength * d, latents, changes), changed


@functools.partial(jax.jit, static_argnames="preprocess")
def _best_strengths(
    generator, directions, clip, latents, dt, threshold, *, preprocess
) -> Float[Array, " batch"]:
    resolution = comparison_resolution(generator, clip)

    def features(images: Latents, strengths: Float[Array, " candidates"]) -> Array:
        moved, _ = _move(generator, directions, images, dt, strengths, threshold)
        return image_features(clip, synthesize(generator, moved, resolution), preprocess)

    before = image_features(clip, synthesize(generator, latents, resolution), preprocess)
    return lowest_loss(features, latents, before, unit(dt.sum(axis=0)), _AUTOMATIC_STRENGTHS)


@jax.jit
def channel_weights(
    directions: Directions,
    dt: Float[Array, "texts embed"],
    threshold: float | Float[Array, ""],
) -> Float[Array, " channels"]:
    """Returns the change of each channel, in standard deviations per unit of strength.

    The largest absolute change of a text is 1. All changes are 0 if no channel reaches the
    threshold.
    """
    products = _products(directions, dt)
    kept = jnp.where(jnp.abs(products) < threshold, 0.0, products)
    largest = jnp.max(jnp.abs(kept), axis=0)
    return jnp.sum(kept / jnp.where(largest == 0, 1.0, largest), axis=1)


@functools.partial(jax.jit, static_argnames="channels")
def automatic_threshold(
    directions: Directions,
    dt: Float[Array, " embed"] | Float[Array, "texts embed"],
    channels: int = 20,
) -> Float[Array, ""]:
    """Returns the largest of 0.10, 0.11, ..., 0.29 that keeps more than ``channels``, or 0.1.

    The official notebook's rule; it uses 20 channels for faces and 100 for other images.
    """
    products = jnp.max(jnp.abs(_products(directions, jnp.atleast_2d(dt))), axis=1)
    enough = jnp.sum(products[:, None] >= _AUTOMATIC_THRESHOLDS, axis=0) > channels
    first = jnp.where(jnp.any(enough), jnp.argmax(enough), -1)
    return jnp.asarray(_AUTOMATIC_THRESHOLDS)[first]


def _products(directions: Directions, dt: Array) -> Float[Array, "channels texts"]:
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(directions.relevance[...], dt.T, precision=highest)
