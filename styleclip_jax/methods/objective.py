"""The objective of optimization and mapper training: its terms and their inputs.

A new term is a function of features in ``losses.py``, an entry of :data:`TERMS`, and a weight in
``OptimizeConfig`` and ``MapperTrainConfig``.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from styleclip_jax.errors import InputError, check_choices
from styleclip_jax.io.text import Tokenizer, encode_texts
from styleclip_jax.latents import Latents
from styleclip_jax.losses import (
    clip_normalize,
    clip_resize,
    direction_loss,
    identity_features,
    identity_loss,
    keep_loss,
    similarity_loss,
)
from styleclip_jax.models.arcface import ArcFace
from styleclip_jax.models.clip import CLIP
from styleclip_jax.views import VIEWS, random_views

Guidance = Literal["similarity", "direction"]
# Random views are applied to images that were resized by averaging over areas.
AreaPreprocess = Literal["styleclip", "clip"]
# (texts, embed) of one CLIP, or a sequence with one array per CLIP.
TextFeatures = Float[Array, "_ _"] | Sequence[Float[Array, "_ _"]]
# The same, or the texts themselves, which need a tokenizer.
Texts = TextFeatures | str | Sequence[str]
Tokenizers = Tokenizer | Sequence[Tokenizer]
ExtraLoss = Callable[[Float[Array, "batch height height 3"], Latents], Float[Array, " batch"]]


class Features(NamedTuple):
    """Features of images by the frozen networks.

    Attributes:
        clip: Features (views, B, E) of every CLIP; empty if no term needs them.
        identity: Features (B, F) of ArcFace, or None.
    """

    clip: tuple[Float[Array, "views batch _"], ...]
    identity: Float[Array, "batch _"] | None


class Originals(NamedTuple):
    """Data of the images before the edit that terms need.

    Attributes:
        features: Their features, without random views.
        seen: The images at the input size of every CLIP, from which random views are made; empty
            without random views.
    """

    features: Features
    seen: tuple[Float[Array, "batch _ _ 3"], ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "clips",
        "arcface",
        "texts",
        "neutrals",
        "anchors",
        "weights",
        "orthogonal_lambda",
        "extra_loss",
    ),
    meta_fields=("preprocess", "views", "view_kinds"),
)
@dataclasses.dataclass(frozen=True)
class Objective:
    """The objective of an edit; see :func:`make_objective`.

    Attributes:
        clips: One or several CLIPs; the loss is the mean of theirs.
        arcface: Identity network. None: no identity loss.
        texts: Features of the text, for every CLIP.
        neutrals: Features of the neutral text, for every CLIP. None: guidance by similarity.
        anchors: Features of the texts to keep, for every CLIP. None: no such term.
        weights: Weights of the terms, by their names in :data:`TERMS`.
        orthogonal_lambda: See :func:`styleclip_jax.losses.direction_loss`.
        extra_loss: The caller's loss of edited images and latents. None: no such term.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.
        views: Number of random views of every image. 0: the image itself.
        view_kinds: See :data:`styleclip_jax.views.VIEWS`.
    """

    clips: tuple[CLIP, ...]
    arcface: ArcFace | None
    texts: tuple[Array, ...]
    neutrals: tuple[Array, ...] | None
    anchors: tuple[Array, ...] | None
    weights: dict[str, Array]
    orthogonal_lambda: Array
    extra_loss: jax.tree_util.Partial | None
    preprocess: AreaPreprocess
    views: int
    view_kinds: tuple[str, ...]

    @property
    def compares_features(self) -> bool:
        """Whether a term needs CLIP's features of the original images."""
        return self.neutrals is not None or self.anchors is not None

    @property
    def needs_originals(self) -> bool:
        """Whether a term needs the original images."""
        return self.compares_features or self.arcface is not None


def make_objective(
    clip: CLIP | Sequence[CLIP],
    text_features: Texts,
    config: Any,
    arcface: ArcFace | None,
    neutral_features: Texts | None,
    keep_features: Texts | None,
    tokenizer: Tokenizers | None,
    extra_loss: ExtraLoss | None,
    batch: int,
) -> Objective:
    """Makes the objective and checks that networks, texts and settings match.

    Args:
        clip: One CLIP or several.
        text_features: (1, E) or (batch, E); with several CLIPs, a sequence with one array per CLIP,
            here and below. Or one or ``batch`` strings.
        config: An ``OptimizeConfig`` or a ``MapperTrainConfig``.
        arcface: Identity network; ignored if its weight is zero.
        neutral_features: Like ``text_features``; ignored unless ``config.guidance`` is
            ``"direction"``.
        keep_features: (K, E); ignored if their weight is zero.
        tokenizer: The tokenizer of every CLIP; required if texts are strings.
        extra_loss: ``extra_loss(images, latents) -> (batch,)``, added to the other terms.
        batch: Number of images that may have different texts.

    Raises:
        InputError: Features do not match the CLIPs, a required neutral text is missing, or strings
            have no tokenizer.
    """
    clips = tuple(clip) if isinstance(clip, Sequence) else (clip,)
    if not clips:
        raise InputError("the sequence of CLIPs is empty; pass at least one")

    def checked(name: str, texts: Texts, rows: Sequence[int]) -> tuple[Array, ...]:
        features = _features(name, texts, clip, tokenizer)
        each: Any = features if isinstance(clip, Sequence) else (features,)
        if len(each) != len(clips):
            raise InputError(f"{name} are for {len(each)} CLIPs, expected {len(clips)}")
        each = tuple(jnp.atleast_2d(x) for x in each)
        for x, one in zip(each, clips, strict=True):
            width = one.config.embed_dim
            shapes = [(n, width) for n in rows or (len(x),)]
            if x.shape not in shapes or not len(x):
                expected = " or ".join(map(str, shapes)) if rows else f"(texts, {width})"
                raise InputError(f"{name} have shape {x.shape}, expected {expected}")
        # One row per image, so that one text and several texts share a compiled program.
        return tuple(jnp.broadcast_to(x, (batch, x.shape[1])) for x in each) if rows else each

    rows = sorted({1, batch})
    texts = checked("text_features", text_features, rows)
    neutrals = anchors = None
    if config.guidance == "direction":
        if neutral_features is None:
            raise InputError(
                "guidance is 'direction', which needs neutral_features; pass clip.encode_text of a"
                " text that describes all images, such as 'a face'"
            )
        neutrals = checked("neutral_features", neutral_features, rows)
        for text, neutral in zip(texts, neutrals, strict=True):
            if not isinstance(text, Tracer) and not isinstance(neutral, Tracer):
                if np.all(np.asarray(text) == np.asarray(neutral), axis=-1).any():
                    raise InputError(
                        "the text and the neutral text are the same, so there is no direction; use"
                        " another neutral text"
                    )
    if keep_features is not None and not is_zero(config.keep_lambda):
        anchors = checked("keep_features", keep_features, ())
    # OptimizeConfig has no weight of the CLIP loss; it is 1.
    weights = {name: getattr(config, term.weight, 1.0) for name, term in TERMS.items()}
    return Objective(
        clips=clips,
        arcface=None if is_zero(config.id_lambda) else arcface,
        texts=texts,
        neutrals=neutrals,
        anchors=anchors,
        weights={name: as_number(weight) for name, weight in weights.items()},
        orthogonal_lambda=as_number(config.orthogonal_lambda),
        extra_loss=_as_pytree(extra_loss),
        preprocess=config.preprocess,
        views=config.views,
        view_kinds=config.view_kinds,
    )


def _as_pytree(loss: ExtraLoss | None) -> jax.tree_util.Partial | None:
    """A pytree whose function is static, and whose bound arrays, if any, are leaves."""
    if loss is None or isinstance(loss, jax.tree_util.Partial):
        return loss
    return jax.tree_util.Partial(loss)


def _features(
    name: str, texts: Texts, clip: CLIP | Sequence[CLIP], tokenizer: Tokenizers | None
) -> TextFeatures:
    """Encodes texts that are strings."""
    strings: Any = [texts] if isinstance(texts, str) else texts
    if not isinstance(strings, Sequence) or not all(isinstance(x, str) for x in strings or [None]):
        return cast(TextFeatures, texts)
    if tokenizer is None:
        raise InputError(f"{name} are strings, which need a tokenizer; pass one, or CLIP features")
    if not isinstance(clip, Sequence):
        return encode_texts(clip, cast(Tokenizer, tokenizer), strings)
    tokenizers = tokenizer if isinstance(tokenizer, Sequence) else (tokenizer,)
    if len(tokenizers) != len(clip):
        raise InputError(f"there are {len(tokenizers)} tokenizers, expected {len(clip)}")
    return [encode_texts(one, t, strings) for one, t in zip(clip, tokenizers, strict=True)]


def describe_originals(
    objective: Objective, images: Float[Array, "batch height height 3"]
) -> Originals:
    """Encodes the images before the edit."""
    clips = objective.clips if objective.compares_features else ()
    features = Features(
        tuple(_clip_features(objective, clip, images, None) for clip in clips),
        _identity_features(objective, images),
    )
    viewed = clips if objective.views else ()
    return Originals(features, tuple(clip_resize(images, x.config.image_size) for x in viewed))


def image_losses(
    objective: Objective,
    images: Float[Array, "batch height height 3"],
    latents: Latents,
    originals: Originals | None,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
    """The weighted sum of all terms, and every term without its weight, per image.

    Args:
        objective: The objective.
        images: Edited images in [-1, 1].
        latents: Their latents, for the extra loss.
        originals: From :func:`describe_originals`; required if ``objective.needs_originals``.
        key: Key of the random views. None: no views. Original and edited images get the same views,
            so that only the edit changes the features.
    """
    features = Features(
        tuple(_clip_features(objective, clip, images, key) for clip in objective.clips),
        _identity_features(objective, images),
    )
    before = None if originals is None else originals.features
    if originals is not None and before is not None and originals.seen and key is not None:
        views = [
            _clip_features(objective, clip, seen, key)
            for clip, seen in zip(objective.clips, originals.seen, strict=True)
        ]
        before = before._replace(clip=tuple(views))
    terms = {
        name: losses
        for name, term in TERMS.items()
        if (losses := term.losses(objective, features, before)) is not None
    }
    losses = sum((objective.weights[name] * terms[name] for name in terms), jnp.zeros(()))
    if objective.extra_loss is not None:
        terms["extra_loss"] = _extra_loss(objective.extra_loss, images, latents)
        losses += terms["extra_loss"]
    return losses, terms


def _extra_loss(loss: ExtraLoss, images: Array, latents: Latents) -> Float[Array, " batch"]:
    losses = jnp.asarray(loss(images, latents), jnp.float32)
    if losses.shape != images.shape[:1]:
        raise InputError(
            f"extra_loss returns shape {losses.shape}, expected {images.shape[:1]}, one loss per"
            " image"
        )
    return losses


def _clip_features(
    objective: Objective, clip: CLIP, images: Array, key: PRNGKeyArray | None
) -> Float[Array, "views batch _"]:
    size = clip.config.image_size
    seen = clip_resize(images, size)[None]
    if objective.views and key is not None:
        seen = random_views(seen[0], key, objective.views, objective.view_kinds)
    # Views of an image are adjacent, so that they stay on its device.
    pixels = jnp.moveaxis(clip_normalize(seen, objective.preprocess), 0, 1)
    features = clip.encode_image(pixels.reshape(-1, size, size, 3))
    return jnp.moveaxis(features.reshape(*pixels.shape[:2], -1), 1, 0)


def _identity_features(objective: Objective, images: Array) -> Float[Array, "batch _"] | None:
    return None if objective.arcface is None else identity_features(objective.arcface, images)


def _guidance_term(objective: Objective, edited: Features, originals: Any) -> Array:
    if objective.neutrals is None:
        losses = map(similarity_loss, edited.clip, objective.texts)
    else:
        loss = functools.partial(direction_loss, orthogonal_lambda=objective.orthogonal_lambda)
        losses = map(loss, edited.clip, originals.clip, objective.texts, objective.neutrals)
    return _mean(losses)


def _keep_term(objective: Objective, edited: Features, originals: Any) -> Array | None:
    if objective.anchors is None:
        return None
    return _mean(map(keep_loss, edited.clip, originals.clip, objective.anchors))


def _identity_term(objective: Objective, edited: Features, originals: Any) -> Array | None:
    if edited.identity is None:
        return None
    return identity_loss(edited.identity, originals.identity)


def _mean(losses: Any) -> Float[Array, " batch"]:
    """The mean over CLIPs and views."""
    return jnp.mean(jnp.stack(tuple(losses)), axis=(0, 1))


class Term(NamedTuple):
    """A term of the objective.

    Attributes:
        label: Its name in messages.
        weight: The field of the settings with its weight.
        losses: The loss of every image, or None if the term is not part of the objective.
    """

    label: str
    weight: str
    losses: Callable[[Objective, Features, Features | None], Array | None]


TERMS = {
    "clip_loss": Term("CLIP", "clip_lambda", _guidance_term),
    "keep_loss": Term("kept texts", "keep_lambda", _keep_term),
    "id_loss": Term("identity", "id_lambda", _identity_term),
}


def check_objective(config: Any) -> None:
    """Raises InputError if a choice of the objective does not exist.

    Args:
        config: An ``OptimizeConfig`` or a ``MapperTrainConfig``.
    """
    check_choices(config, guidance=Guidance, preprocess=AreaPreprocess)
    if config.views < 0:
        raise InputError(f"views is {config.views}, expected a number of at least 0")
    unknown = [kind for kind in config.view_kinds if kind not in VIEWS]
    if unknown or not config.view_kinds:
        raise InputError(
            f"view_kinds are {', '.join(config.view_kinds) or 'none'}, expected some of"
            f" {', '.join(VIEWS)}"
        )


def as_number(value: Any) -> Array:
    """A number of the settings as an array, so that changing it does not recompile."""
    return jnp.asarray(value, jnp.float32)


def is_zero(number: Any) -> bool:
    """Whether a number of the settings is known and zero."""
    return not isinstance(number, Tracer) and not np.any(number)
