"""Global directions: a text becomes a change of style channels, the same for every image.

StyleCLIP (arXiv 2103.17249), section 6; official ``global_torch/StyleCLIP.py``. What it needs of a
generator and a CLIP is made once, by :mod:`styleclip_jax.methods.relevance`.
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
from styleclip_jax.methods.automatic_strength import lowest_loss
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.directions import Directions
from styleclip_jax.models.stylegan2 import Generator, StyleSpace

# The official sliders' defaults; they go from -10 to 10 and from 0.08 to 0.3.
STRENGTH, THRESHOLD = 4.1, 0.15


class DirectionDefaults(NamedTuple):
    """Settings that suit a generator.

    Attributes:
        strength: See :func:`edit_with_direction`; None: automatic, by :func:`best_strengths`.
        threshold: Likewise; None: automatic, by
        min_channels: See :func:`automatic_threshold`.
    """

    strength: float | None = STRENGTH
    threshold: float | None = None
    min_channels: int = 20


# For the avatars that come with the package, whose channels are entries of w.
AVATARS_DIRECTIONS = DirectionDefaults(strength=None, threshold=0.2)
# What :func:`best_strengths` tries; the first leaves images as they are.
_AUTOMATIC_STRENGTHS = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0)
# From the most disentangled edit to the least.
_AUTOMATIC_THRESHOLDS = (np.arange(29, 9, -1) / 100).astype(np.float32)


class NoChannelError(InputError):
    """No channel reaches the threshold.

    Args:
        threshold: The threshold.
        largest: The largest one that keeps a channel.
    """

    def __init__(self, threshold: float, largest: float):
        super().__init__(
            f"no channel reaches the threshold {threshold:g}; the largest value that keeps one is"
            f" {largest:.3f}"
        )
        self.largest = largest


class DirectionEdit(NamedTuple):
    """Edited images.

    Attributes:
        images: (B, R, R, 3) in about [-1, 1].
        styles: Their StyleSpace coordinates.
        changed: Number of channels that changed.
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
    """The direction from one text to another in CLIP's space, of unit length.

    Args:
        clip: Its text tower is used.
        tokenizer: That of the CLIP.
        text: What the images should show.
        neutral: What they show anyway, such as "a face".
        templates: See :func:`styleclip_jax.encode_texts`. General CLIPs need
            ``styleclip_jax.IMAGENET_TEMPLATES``, as in the official code.

    Raises:
        InputError: The texts mean the same to the CLIP.
    """
    difference, length = _difference(encode_texts(clip, tokenizer, [text, neutral], templates))
    if length < 1e-4:
        raise InputError(
            f"{text!r} and the neutral text {neutral!r} are the same to this CLIP; there is no"
            " direction"
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

    With the relevance ``R`` and the scales ``sigma`` of the channels, ``r = R dt``; entries below
    the threshold are zeroed and the others divided by the largest, and the styles become
    ``s + strength * sigma * r``. Differentiable in latents, ``dt`` and strength.

    Args:
        generator: The generator.
        directions: Its relevances, for the CLIP that ``dt`` is of.
        latents: W+ (B, L, w_dim) or StyleSpace.
        dt: From :func:`text_direction`; the changes of several texts are added up.
        strength: How much to edit, one for all images or one for each; negative values edit the
            other way round.
        threshold: Channels whose product with the text's direction is smaller stay as they are:
            larger values change less else in the image.

    Raises:
        InputError: No channel reaches the threshold, or models and latents do not fit each other.
            Under an outer ``jax.jit`` the first cannot be known, and the images stay as they are.
    """
    directions.check_generator(generator)
    if directions.scales is None:
        raise InputError(
            "the directions have no scales, which published files lack; measure them with"
            " styleclip_jax.with_scales"
        )
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
    """The strength of :func:`edit_with_direction` that suits each image best, as CLIP sees it.

    Of 0 and some strengths from 2 to 6, the one with the lowest
    :func:`styleclip_jax.losses.direction_loss`; an image that shows already what the text says may
    stay as it is. Takes a forward pass of generator and CLIP for each.

    Args:
        generator: The generator.
        directions: Its relevances.
        clip: The CLIP that ``dt`` is of.
        latents: W+ (B, L, w_dim) or StyleSpace.
        dt: From :func:`text_direction`; several texts count as the sum of their directions.
        threshold: See :func:`edit_with_direction`.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.
    """
    directions.check_generator(generator)
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
    """The latents of :func:`edit_with_direction`, without their images.

    Returns:
        The latents, in W+ where the given ones are and the directions are of w, and in StyleSpace
        otherwise; and the number of channels that changed.

    Raises:
        InputError: See :func:`edit_with_direction`.
    """
    directions.check_generator(generator)
    moved, changed = _move(generator, directions, latents, jnp.atleast_2d(dt), strength, threshold)
    _require_change(changed, directions, dt, threshold)
    return moved, changed


def _require_change(changed: Array, directions: Directions, dt: Array, threshold: Any) -> None:
    if not isinstance(changed, Tracer) and changed == 0:
        largest = np.abs(_products(directions, jnp.atleast_2d(dt))).max(initial=0)
        raise NoChannelError(float(threshold), np.floor(1000 * float(largest)) / 1000)


def check_fingerprints(directions: Directions, generator: Generator, clip: CLIP) -> None:
    """Raises InputError where directions were made for another generator or another CLIP."""
    directions.check_generator(generator)
    if directions.config.embed_dim != clip.config.embed_dim:
        raise InputError(
            f"the directions are for a CLIP with features of {directions.config.embed_dim}, this"
            f" one has {clip.config.embed_dim}"
        )
    for name, model in (("generator", generator), ("clip", clip)):
        known = getattr(directions.config, name)
        if known and known != fingerprint(model):
            raise InputError(
                f"the directions were made for another {name.replace('clip', 'CLIP')} of the same"
                " shape; give that one, or make directions for this one with make_directions.py"
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
    if directions.config.space == "w" and not isinstance(latents, tuple):
        return latents + (strength * change)[:, None], changed
    styles = to_styles(generator, latents)
    changes = directions.style_change(generator, change)
    return jax.tree.map(lambda s, d: s + strength * d, styles, changes), changed


@functools.partial(jax.jit, static_argnames="preprocess")
def _best_strengths(
    generator, directions, clip, latents, dt, threshold, *, preprocess
) -> Float[Array, " batch"]:
    def features(strength: float) -> Float[Array, "batch embed"]:
        moved, _ = _move(generator, directions, latents, dt, strength, threshold)
        return image_features(clip, synthesize(generator, moved), preprocess)

    return lowest_loss(features, unit(dt.sum(axis=0)), _AUTOMATIC_STRENGTHS)


def channel_weights(
    directions: Directions,
    dt: Float[Array, "texts embed"],
    threshold: float | Float[Array, ""],
) -> Float[Array, " channels"]:
    """How much each channel changes, in standard deviations per unit of strength.

    The largest change that a text makes is 1 or -1; all are 0 where no channel reaches the
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
    """The largest of 0.10, 0.11, ..., 0.29 that keeps more than ``channels`` channels, or 0.1.

    The official notebook's rule, with 20 for faces and 100 for other images.
    """
    products = jnp.max(jnp.abs(_products(directions, jnp.atleast_2d(dt))), axis=1)
    enough = jnp.sum(products[:, None] >= _AUTOMATIC_THRESHOLDS, axis=0) > channels
    first = jnp.where(jnp.any(enough), jnp.argmax(enough), -1)
    return jnp.asarray(_AUTOMATIC_THRESHOLDS)[first]


def _products(directions: Directions, dt: Array) -> Float[Array, "channels texts"]:
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(directions.relevance[...], dt.T, precision=highest)
