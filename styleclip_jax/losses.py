"""How well images fit a text (CLIP), and whether they still show the same person (ArcFace)."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from styleclip_jax.models.arcface import ArcFace
from styleclip_jax.models.clip import CLIP

Preprocess = Literal["styleclip", "clip"]

# Mean and standard deviation per channel, in [0, 1], with which OpenAI's CLIP was trained.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@functools.cache
def area_matrix(source: int, target: int) -> np.ndarray:
    """The (target, source) matrix that resizes one axis by averaging over areas.

    Output ``j`` is the mean of the input, taken as constant on each pixel, over
    ``[j, j + 1] * source / target``. The official loss upsamples by nearest neighbour to
    ``7 * source`` and average-pools by ``source / 32``; for a target of 224 pixels that is the same
    map, without the large intermediate image.
    """
    edges = np.arange(target + 1) * source / target
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) * target / source).astype(np.float32)


@functools.cache
def adaptive_pool_matrix(source: int, target: int) -> np.ndarray:
    """The (target, source) matrix of one axis of PyTorch's ``AdaptiveAvgPool2d``."""
    starts = np.arange(target) * source // target
    ends = -(-(np.arange(target) + 1) * source // target)
    pixels = np.arange(source)
    inside = (pixels >= starts[:, None]) & (pixels < ends[:, None])
    return (inside / (ends - starts)[:, None]).astype(np.float32)


def _resize(images: Array, matrix: np.ndarray) -> Array:
    # Losses stay in float32, also where an accelerator would rather multiply in shorter formats.
    highest = jax.lax.Precision.HIGHEST
    rows = jnp.einsum("jh,bhwc->bjwc", matrix, images, precision=highest)
    return jnp.einsum("kw,bjwc->bjkc", matrix, rows, precision=highest)


def clip_pixels(
    images: Float[Array, "batch height height 3"],
    image_size: int,
    preprocess: Preprocess = "styleclip",
) -> Float[Array, "batch size size 3"]:
    """What CLIP gets to see of generated images.

    Args:
        images: Square images in [-1, 1].
        image_size: Input size of the CLIP.
        preprocess: ``"styleclip"`` only resizes, as the official ``criteria/clip_loss.py`` does, so
            that published settings give published results; ``"clip"`` also normalizes with the
            statistics that CLIP was trained with.
    """
    size = images.shape[1]
    if size != image_size:
        images = _resize(images, area_matrix(size, image_size))
    if preprocess == "styleclip":
        return images
    return ((images + 1) / 2 - CLIP_MEAN) / CLIP_STD


def clip_loss(
    clip: CLIP,
    images: Float[Array, "batch height height 3"],
    text_features: Float[Array, "texts embed"],
    preprocess: Preprocess = "styleclip",
) -> Float[Array, " batch"]:
    """One minus the cosine of image and text features (StyleCLIP, equation 1).

    Args:
        clip: The judge.
        images: Images in [-1, 1].
        text_features: One text per image or one for all, from ``clip.encode_text``; need not be of
            unit length.
        preprocess: See :func:`clip_pixels`.

    Returns:
        A loss in [0, 2] per image.
    """
    pixels = clip_pixels(images, clip.config.image_size, preprocess)
    return 1 - jnp.sum(_unit(clip.encode_image(pixels)) * _unit(text_features), axis=-1)


def identity_features(
    arcface: ArcFace, images: Float[Array, "batch height height 3"]
) -> Float[Array, "batch features"]:
    """ArcFace's unit vectors of aligned faces (official ``criteria/id_loss.py``).

    Images are pooled to 256 pixels, cropped to the face and pooled to ArcFace's input size.
    """
    if images.shape[1] != 256:
        images = _resize(images, adaptive_pool_matrix(images.shape[1], 256))
    face = images[:, 35:223, 32:220]
    return arcface(_resize(face, adaptive_pool_matrix(188, arcface.config.image_size)))


def id_loss(
    arcface: ArcFace,
    images: Float[Array, "batch height height 3"],
    reference_images: Float[Array, "batch height height 3"],
) -> Float[Array, " batch"]:
    """One minus the cosine of the faces' identities (StyleCLIP, equation 2).

    Args:
        arcface: The face recognition network.
        images: Images in [-1, 1].
        reference_images: Who they should show, likewise.

    Returns:
        A loss in [0, 2] per image.
    """
    features = identity_features(arcface, images)
    return 1 - jnp.sum(features * identity_features(arcface, reference_images), axis=-1)


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
