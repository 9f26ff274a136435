"""Learns one change of style channels for a text, in minutes and without preprocessing.

StyleMC (Kocasari et al., WACV 2022, arXiv 2112.08493): gradient descent on the mean loss of random
images, synthesized at a low resolution, finds one change for all images. For generators without
directions.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError, check_choices
from styleclip_jax.latents import Latents, sample_latents, to_styles
from styleclip_jax.losses import (
    Preprocess,
    clip_loss,
    identity_features,
    identity_loss,
)
from styleclip_jax.models.arcface import ArcFace
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.stylegan2 import Generator, StyleSpace

# (1, C_i) for every StyleSpace entry.
StyleChange = tuple[Float[Array, "1 _"], ...]


@dataclasses.dataclass(frozen=True)
class StyleMCConfig:
    """Settings of :func:`learn_style_change`.

    Attributes:
        steps: Number of gradient steps.
        learning_rate: Length of a step in StyleSpace.
        images_per_step: Number of new random images per step.
        id_lambda: Weight of the identity loss; needs an ArcFace unless zero.
        guide_resolution: Resolution of the images that CLIP and ArcFace encode. None: full
            resolution.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.
        seed: Seed of the random images.
    """

    steps: int = 50
    learning_rate: float = 0.2
    images_per_step: int = 8
    id_lambda: float = 0.0
    guide_resolution: int | None = 256
    preprocess: Preprocess = "clip"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "images_per_step"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        check_choices(self, preprocess=Preprocess)


def learn_style_change(
    generator: Generator,
    clip: CLIP,
    text_features: Float[Array, "1 embed"],
    config: StyleMCConfig,
    arcface: ArcFace | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> StyleChange:
    """Learns a change of the convolutions' styles that makes images fit a text.

    A step does not change channels whose gradients have different signs in different images.

    Args:
        generator: The generator.
        clip: The CLIP.
        text_features: The text's features, from ``clip.encode_text``.
        config: Settings.
        arcface: Identity network; only needed with ``id_lambda``.
        on_step: Called with the number of steps taken and the mean loss before the last step.

    Returns:
        The change, for :func:`apply_style_change`; zero in ToRGB layers.

    Raises:
        InputError: ``id_lambda`` is not zero and ``arcface`` is missing.
    """
    if config.id_lambda and arcface is None:
        raise InputError(f"id_lambda is {config.id_lambda}, which needs an ArcFace; pass arcface")
    generator.config.check_guide_resolution(config.guide_resolution)
    change = _no_change(generator)
    count = config.steps * config.images_per_step
    latents = sample_latents(generator, count, config.seed)
    for i in range(config.steps):
        batch = latents[i * config.images_per_step : (i + 1) * config.images_per_step]
        change, loss = _step(generator, clip, arcface, batch, text_features, change, config=config)
        if on_step:
            on_step(i + 1, float(loss))
    return change


# The change is on the generator's devices, where a step leaves it; elsewhere, the second step would
# be compiled again.
@functools.partial(jax.jit, keep_unused=True)
def _no_change(generator: Generator) -> StyleChange:
    return tuple(jnp.zeros((1, width)) for width in generator.config.style_dims)


@functools.partial(jax.jit, static_argnames="config")
def _step(generator, clip, arcface, latents, text_features, change, *, config):
    styles = generator.styles(latents)
    weight = config.id_lambda

    def losses(changes: StyleSpace) -> Array:
        edited = jax.tree.map(jnp.add, styles, changes)
        images = generator.synthesize(edited, config.guide_resolution)
        loss = clip_loss(clip, images, text_features, config.preprocess)
        if weight:
            originals = generator.synthesize(styles, config.guide_resolution)
            identities = (identity_features(arcface, x) for x in (images, originals))
            loss += weight * identity_loss(*identities)
        return loss

    # One change per image gives one gradient per image.
    changes = jax.tree.map(lambda s, c: jnp.broadcast_to(c, s.shape), styles, change)
    loss, pullback = jax.vjp(losses, changes)
    (gradients,) = pullback(jnp.ones_like(loss))
    mean = tuple(
        jnp.zeros((1, g.shape[1])) if i in generator.config.rgb_style_indices else _agreed_mean(g)
        for i, g in enumerate(gradients)
    )
    length = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in mean))
    scale = config.learning_rate / jnp.where(length == 0, 1.0, length)
    return jax.tree.map(lambda c, g: c - scale * g, change, mean), loss.mean()


def _agreed_mean(gradients: Float[Array, "batch channels"]) -> Float[Array, "1 channels"]:
    signs = jnp.sign(gradients)
    agreed = jnp.all(signs == signs[:1], axis=0, keepdims=True)
    return jnp.where(agreed, gradients.mean(axis=0, keepdims=True), 0.0)


@jax.jit
def apply_style_change(
    generator: Generator,
    latents: Latents,
    change: StyleChange,
    strength: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "batch resolution resolution 3"], StyleSpace]:
    """Adds a change to the styles of images.

    Returns:
        The edited images in about [-1, 1], and their styles.
    """
    styles = to_styles(generator, latents)
    styles = jax.tree.map(lambda s, d: s + strength * d, styles, change)
    return generator.synthesize(styles), styles
