"""A starting point for optimization and mappers: the direction of a text in W, by regression.

The gradient of the CLIP loss is flat around many images: half a pair of sunglasses matches the text
no better than none. Over many random images, however, CLIP's features are roughly a linear function
of ``w``, as InterFaceGAN (arXiv 1907.10786) found for attributes. A ridge regression on random
images finds the direction; one set of images serves all texts.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.losses import Preprocess, image_features, unit
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.stylegan2 import Generator

# How far along its direction an edit may start, in the standard deviations of random images.
START_STEPS = (0.0, 1.5, 3.0, 4.5, 6.0, 7.5)
# Images synthesized at once: four of 1024 pixels, more of smaller ones, and at most 64.
_CHUNK, _CHUNK_WIDTH = 64, 4 * 1024
# Regularization of the regression, relative to the mean variance of the entries of `w`.
_RIDGE = 0.1


class SampleFeatures(NamedTuple):
    """Random latents and CLIP's features of their images.

    Attributes:
        latents: Latents in W, shared by all layers.
        features: Unit features of every CLIP.
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
        num: Number of images.
        seed: Seed of the images.
        truncation: See :func:`styleclip_jax.sample_latents`.
        resolution: Resolution of the images that CLIP sees, like ``guide_resolution`` of
            :class:`styleclip_jax.OptimizeConfig`. None: the generator's own.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.

    Raises:
        InputError: ``num`` is not positive.
    """
    if num < 1:
        raise InputError(f"the number of samples is {num}, expected at least 1")
    clips = tuple(clip) if isinstance(clip, Sequence) else (clip,)
    # All chunks have one shape, so that the program is compiled once.
    fits = max(1, _CHUNK_WIDTH // (resolution or generator.config.resolution))
    size = min(num, _CHUNK, fits)
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
    neutral_features: Float[Array, "_ _"] | Sequence[Float[Array, "_ _"]] | None = None,
) -> Float[Array, "texts w_dim"]:
    """Estimates, for every text, the direction in W in which images fit the text better.

    A ridge regression on the latents predicts the images' similarity to the text, or to its
    difference from the neutral text; with several CLIPs, the mean similarity.

    Args:
        samples: From :func:`sample_features`.
        text_features: ``clip.encode_text`` of T texts; with several CLIPs, a sequence of one array
            per CLIP, here and below.
        neutral_features: Features of one text that describes all images, or of one per text. None:
            only the texts are used.

    Returns:
        Directions, each as long as the standard deviation of the samples along it.

    Raises:
        InputError: There are fewer than two samples.
    """
    if len(samples.latents) < 2:
        raise InputError(
            f"the number of samples is {len(samples.latents)}, expected at least 2 to find"
            " directions"
        )
    texts = tuple(text_features) if isinstance(text_features, Sequence) else (text_features,)
    neutrals: tuple[Array, ...] | None = None
    if neutral_features is not None:
        several = isinstance(neutral_features, Sequence)
        neutrals = tuple(neutral_features) if several else (neutral_features,)
    return _regress(samples, texts, neutrals)


def style_change(
    generator: Generator, directions: Float[Array, "batch w_dim"]
) -> tuple[Float[Array, "batch _"], ...]:
    """The change of the styles when all layers' ``w`` change by ``directions``.

    Styles are affine functions of ``w``, so this is the same for every image.
    """
    mean = generator.mean_latents(len(directions))
    return jax.tree.map(
        jnp.subtract, generator.styles(mean + directions[:, None]), generator.styles(mean)
    )


@functools.partial(jax.jit, static_argnames=("resolution", "preprocess"))
def _encode(
    generator: Generator,
    clips: tuple[CLIP, ...],
    latents: Float[Array, "batch layers w_dim"],
    resolution: int | None,
    preprocess: Preprocess,
) -> tuple[Float[Array, "batch _"], ...]:
    images = synthesize(generator, latents, resolution)
    return tuple(image_features(clip, images, preprocess) for clip in clips)


@jax.jit
def _regress(
    samples: SampleFeatures, texts: tuple[Array, ...], neutrals: tuple[Array, ...] | None
) -> Float[Array, "texts w_dim"]:
    fits = jnp.zeros(())
    for i, features in enumerate(samples.features):
        text = unit(texts[i])
        fits += features @ (text if neutrals is None else unit(text - unit(neutrals[i]))).T
    w = samples.latents - samples.latents.mean(0)
    covariance = w.T @ w / len(w)
    ridge = _RIDGE * jnp.mean(jnp.diag(covariance)) * jnp.eye(len(covariance))
    slopes = jnp.linalg.solve(covariance + ridge, w.T @ (fits - fits.mean(0)))
    along = unit(slopes.T)
    return along * jnp.std(w @ along.T, axis=0)[:, None]
