"""Where an optimization may start: what a text means in W, by linear regression.

Around an image, CLIP's loss often has no gradient that leads to what the text says: half a pair of
sunglasses fits no better than none. Over many images of the generator, however, CLIP's features are
roughly a linear function of `w`, as InterFaceGAN (arXiv 1907.10786) found of attributes. The
regression needs no more than some random images, and one set of them serves every text.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.losses import Preprocess, clip_pixels
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.stylegan2 import Generator

# Images that are synthesized at once.
_CHUNK = 64
# Of the regression, as a share of the mean variance of the entries of `w`.
_RIDGE = 0.1


class SampleFeatures(NamedTuple):
    """Random images, as CLIP sees them.

    Attributes:
        latents: Their latents in W, which all layers share.
        features: CLIP's features of length 1, of every CLIP.
    """

    latents: Float[Array, "samples w_dim"]
    features: tuple[Float[Array, "samples _"], ...]


def sample_features(
    generator: Generator,
    clip: CLIP | Sequence[CLIP],
    num: int = 512,
    seed: int = 0,
    truncation: float = 0.7,
    resolution: int | None = None,
    preprocess: Preprocess = "styleclip",
) -> SampleFeatures:
    """Synthesizes random images and encodes them.

    Args:
        generator: Synthesizes the images.
        clip: One CLIP or several.
        num: How many images.
        seed: Chooses them.
        truncation: See :func:`styleclip_jax.sample_latents`.
        resolution: Of the images that CLIP sees, as ``guide_resolution`` of
            :class:`styleclip_jax.OptimizeConfig`; None: the generator's own.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.

    Raises:
        InputError: ``num`` is less than 2.
    """
    if num < 2:
        raise InputError(f"the number of samples is {num}, expected at least 2")
    clips = tuple(clip) if isinstance(clip, Sequence) else (clip,)
    # One shape for all chunks compiles once.
    size = min(num, _CHUNK)
    latents = sample_latents(generator, -(-num // size) * size, seed, truncation)
    chunks = [
        _encode(generator, clips, latents[i : i + size], resolution, preprocess)
        for i in range(0, len(latents), size)
    ]
    features = tuple(jnp.concatenate(of_clip)[:num] for of_clip in zip(*chunks, strict=True))
    return SampleFeatures(latents[:num, 0], features)


def latent_directions(
    samples: SampleFeatures,
    text_features: Float[Array, "texts _"] | Sequence[Float[Array, "texts _"]],
    neutral_features: Float[Array, "1 _"] | Sequence[Float[Array, "1 _"]] | None = None,
) -> Float[Array, "texts w_dim"]:
    """Estimates for every text in which direction of W images come to fit it.

    Ridge regression of the images' similarity to the text, or to the difference of the text and the
    neutral one, on their latents. Of several CLIPs, the mean similarity counts.

    Args:
        samples: Of :func:`sample_features`.
        text_features: ``clip.encode_text`` of T texts; with several CLIPs a sequence with those of
            each, here and below.
        neutral_features: Of what the images show anyway; None: the text itself counts.

    Returns:
        Directions as long as the samples' standard deviation along them.
    """
    texts = tuple(text_features) if isinstance(text_features, Sequence) else (text_features,)
    neutrals: tuple[Array, ...] | None = None
    if neutral_features is not None:
        several = isinstance(neutral_features, Sequence)
        neutrals = tuple(neutral_features) if several else (neutral_features,)
    return _regress(samples, texts, neutrals)


@functools.partial(jax.jit, static_argnames=("resolution", "preprocess"))
def _encode(
    generator: Generator,
    clips: tuple[CLIP, ...],
    latents: Float[Array, "batch layers w_dim"],
    resolution: int | None,
    preprocess: Preprocess,
) -> tuple[Float[Array, "batch _"], ...]:
    images = synthesize(generator, latents, resolution)
    return tuple(
        _unit(clip.encode_image(clip_pixels(images, clip.config.image_size, preprocess)))
        for clip in clips
    )


@jax.jit
def _regress(
    samples: SampleFeatures, texts: tuple[Array, ...], neutrals: tuple[Array, ...] | None
) -> Float[Array, "texts w_dim"]:
    fits = jnp.zeros(())
    for i, features in enumerate(samples.features):
        text = _unit(texts[i])
        fits += features @ (text if neutrals is None else _unit(text - _unit(neutrals[i]))).T
    w = samples.latents - samples.latents.mean(0)
    covariance = w.T @ w / len(w)
    ridge = _RIDGE * jnp.mean(jnp.diag(covariance)) * jnp.eye(len(covariance))
    slopes = jnp.linalg.solve(covariance + ridge, w.T @ (fits - fits.mean(0)))
    unit = _unit(slopes.T)
    return unit * jnp.std(w @ unit.T, axis=0)[:, None]


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
