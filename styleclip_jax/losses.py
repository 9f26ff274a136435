"""Losses: how well images match a text (CLIP), and whether they show the same person (ArcFace).

Losses are functions of features, so that features of an original image are computed only once;
:func:`clip_loss` and :func:`id_loss` take images.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.models import lpips
from styleclip_jax.models.arcface import ArcFace
from styleclip_jax.models.clip import CLIP, Preprocess
from styleclip_jax.models.lpips import LPIPS

# Networks for a perceptual distance.
Perceptual = LPIPS | CLIP

# Mean and standard deviation per channel, for images in [0, 1], from OpenAI's CLIP.
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

_LPIPS_SIZE = 256


@functools.cache
def area_matrix(source: int, target: int) -> np.ndarray:
    """The (target, source) matrix that resizes one axis by averaging over areas.

    Output ``j`` is the mean of the input, constant on each pixel, over
    ``[j, j + 1] * source / target``. The official loss upsamples by nearest neighbor to
    ``7 * source`` and average-pools by ``source / 32``; for a target of 224 pixels this is the same
    map without the large intermediate image.
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


@functools.cache
def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """The (target, source) matrix of one axis of Pillow's bicubic resize.

    Keys' kernel with a = -0.5, widened when downscaling.
    """
    widening = max(source / target, 1.0)
    centers = (np.arange(target) + 0.5) * source / target
    x = np.abs(np.arange(source) + 0.5 - centers[:, None]) / widening
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _resize(images: Array, rows: np.ndarray, columns: np.ndarray | None = None) -> Array:
    """Applies a matrix to each axis; square images need only one."""
    columns = rows if columns is None else columns
    # Losses stay in float32 on accelerators that multiply in shorter formats by default.
    highest = jax.lax.Precision.HIGHEST
    images = jnp.einsum("jh,bhwc->bjwc", rows, images, precision=highest)
    return jnp.einsum("kw,bjwc->bjkc", columns, images, precision=highest)


def area_resize(
    images: Float[Array, "batch _ _ 3"], height: int, width: int
) -> Float[Array, "batch {height} {width} 3"]:
    """Resizes images by averaging over areas; see :func:`area_matrix`."""
    return _resize(
        images, area_matrix(images.shape[1], height), area_matrix(images.shape[2], width)
    )


def clip_pixels(
    images: Float[Array, "batch height height 3"],
    image_size: int,
    preprocess: Preprocess = "styleclip",
) -> Float[Array, "batch size size 3"]:
    """Preprocesses generated images for CLIP.

    Args:
        images: Square images in [-1, 1].
        image_size: Input size of the CLIP.
        preprocess: ``"styleclip"`` only resizes, as the official ``criteria/clip_loss.py`` does, so
            that published settings give published results; ``"clip"`` also normalizes as in CLIP's
            training; ``"bicubic"`` is CLIP's own preprocessing: it clips to [-1, 1], resizes by
            bicubic interpolation and normalizes.
    """
    if preprocess == "bicubic":
        matrix = bicubic_matrix(images.shape[1], image_size)
        return clip_normalize(_resize(jnp.clip(images, -1, 1), matrix), preprocess)
    return clip_normalize(clip_resize(images, image_size), preprocess)


def clip_resize(
    images: Float[Array, "batch height height 3"], image_size: int
) -> Float[Array, "batch size size 3"]:
    """The first part of :func:`clip_pixels`: resizes images in [-1, 1] to CLIP's input size."""
    size = _size(images)
    return images if size == image_size else _resize(images, area_matrix(size, image_size))


def clip_normalize(
    images: Float[Array, "*batch size size 3"], preprocess: Preprocess
) -> Float[Array, "*batch size size 3"]:
    """The second part of :func:`clip_pixels`: normalizes images as in CLIP's training."""
    return images if preprocess == "styleclip" else ((images + 1) / 2 - CLIP_MEAN) / CLIP_STD


def image_features(
    clip: CLIP,
    images: Float[Array, "batch height height 3"],
    preprocess: Preprocess = "styleclip",
) -> Float[Array, "batch embed"]:
    """CLIP's unit features of images in [-1, 1]; see :func:`clip_pixels`."""
    return unit(clip.encode_image(clip_pixels(images, clip.config.image_size, preprocess)))


def clip_loss(
    clip: CLIP,
    images: Float[Array, "batch height height 3"],
    text_features: Float[Array, "texts embed"],
    preprocess: Preprocess = "styleclip",
) -> Float[Array, " batch"]:
    """One minus the cosine of image and text features (StyleCLIP, equation 1).

    Args:
        clip: The CLIP.
        images: Images in [-1, 1].
        text_features: ``clip.encode_text`` of one text per image or one for all; not necessarily of
            unit length.
        preprocess: See :func:`clip_pixels`.

    Returns:
        A loss in [0, 2] per image.
    """
    pixels = clip_pixels(images, clip.config.image_size, preprocess)
    return similarity_loss(clip.encode_image(pixels), text_features)


def similarity_loss(
    features: Float[Array, "*batch embed"], text_features: Float[Array, "texts embed"]
) -> Float[Array, "*batch"]:
    """One minus the cosine of CLIP's image and text features; see :func:`clip_loss`.

    Args:
        features: Features of images; here and below, features need not have unit length.
        text_features: Features of one text per image or one for all.
    """
    return 1 - jnp.sum(unit(features) * unit(text_features), axis=-1)


def direction_loss(
    features: Float[Array, "*batch embed"],
    original_features: Float[Array, "*originals embed"],
    text_features: Float[Array, "texts embed"],
    neutral_features: Float[Array, "neutrals embed"],
    orthogonal_lambda: float | Float[Array, "*images"],
) -> Float[Array, "*batch"]:
    """Rewards a change of CLIP's image features in the direction of a text, and penalizes others.

    With unit features, let ``d = e(image) - e(original)`` be the change of the image and ``t`` the
    unit vector from the neutral text to the text. The loss is
    ``1 - <d, t> + orthogonal_lambda * |d - <d, t> t|^2``. Like StyleGAN-NADA (arXiv 2108.00946,
    equation 3) it follows a direction between two texts, but the length of the change counts too,
    so a small change in the right direction is not enough.

    Args:
        features: Features of the edited images.
        original_features: Features of the images before the edit.
        text_features: Features of the text, one per image or one for all.
        neutral_features: Features of a text that describes all images, such as "a face", one per
            image or one for all.
        orthogonal_lambda: Weight of changes orthogonal to the direction.

    Returns:
        A loss per image: 1 for an unchanged image; it can be negative.
    """
    direction = unit(unit(text_features) - unit(neutral_features))
    return change_loss(features, original_features, direction, orthogonal_lambda)


def change_loss(
    features: Float[Array, "*batch embed"],
    original_features: Float[Array, "*originals embed"],
    direction: Float[Array, "*directions embed"],
    orthogonal_lambda: float | Float[Array, "*images"],
) -> Float[Array, "*batch"]:
    """The loss of :func:`direction_loss` for a given direction, the unit vector ``t``."""
    change = unit(features) - unit(original_features)
    along = jnp.sum(change * direction, axis=-1)
    orthogonal = change - along[..., None] * direction
    return 1 - along + orthogonal_lambda * jnp.sum(jnp.square(orthogonal), axis=-1)


def keep_loss(
    features: Float[Array, "*batch embed"],
    original_features: Float[Array, "*originals embed"],
    keep_features: Float[Array, "anchors embed"],
) -> Float[Array, "*batch"]:
    """Mean squared change of the images' similarity to texts that the edit should preserve.

    The entanglement loss of Predict, Prevent and Evaluate (Xu et al., CVPR 2022).

    Args:
        features: Features of the edited images.
        original_features: Features of the images before the edit.
        keep_features: Features of the texts.

    Returns:
        A nonnegative loss per image.
    """
    change = unit(features) - unit(original_features)
    changes = jnp.matmul(change, unit(keep_features).T, precision=jax.lax.Precision.HIGHEST)
    return jnp.mean(jnp.square(changes), axis=-1)


def identity_features(
    arcface: ArcFace, images: Float[Array, "batch height height 3"]
) -> Float[Array, "batch features"]:
    """ArcFace's unit vectors of aligned faces (official ``criteria/id_loss.py``).

    Images are pooled to 256 pixels, cropped to the face and pooled to ArcFace's input size.
    """
    size = _size(images)
    if size != 256:
        images = _resize(images, adaptive_pool_matrix(size, 256))
    face = images[:, 35:223, 32:220]
    return arcface(_resize(face, adaptive_pool_matrix(188, arcface.config.image_size)))


def id_loss(
    arcface: ArcFace,
    images: Float[Array, "batch height height 3"],
    reference_images: Float[Array, "batch height height 3"],
) -> Float[Array, " batch"]:
    """One minus the cosine of ArcFace's features of two faces (StyleCLIP, equation 2).

    Args:
        arcface: The face recognition network.
        images: Images in [-1, 1].
        reference_images: Images of the person to preserve, in [-1, 1].

    Returns:
        A loss in [0, 2] per image.
    """
    return identity_loss(
        identity_features(arcface, images), identity_features(arcface, reference_images)
    )


def identity_loss(
    features: Float[Array, "batch features"], reference_features: Float[Array, "batch features"]
) -> Float[Array, " batch"]:
    """:func:`id_loss` of features by :func:`identity_features`."""
    return 1 - jnp.sum(features * reference_features, axis=-1)


def perceptual_features(network: Perceptual, images: Float[Array, "batch height height 3"]) -> Any:
    """Features of square images in [-1, 1] for :func:`perceptual_distance`.

    LPIPS sees images of at most 256 pixels, as in StyleGAN2's projector and PTI.
    """
    if isinstance(network, CLIP):
        return network.encode_image(clip_pixels(images, network.config.image_size, "clip"))
    if images.shape[1] > _LPIPS_SIZE:
        images = area_resize(images, _LPIPS_SIZE, _LPIPS_SIZE)
    return network.features(images)


def perceptual_distance(network: Perceptual, features: Any, others: Any) -> Float[Array, " batch"]:
    """LPIPS, or one minus the cosine of CLIP's features, from :func:`perceptual_features`."""
    if isinstance(network, CLIP):
        return similarity_loss(features, others)
    return lpips.distance(features, others)


def _size(images: Array) -> int:
    """Height and width of images; raises InputError unless they are square with channels last."""
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise InputError(
            f"images have shape {images.shape}, expected (batch, height, height, 3): square, with"
            " the channels last"
        )
    return images.shape[1]


def unit(x: Float[Array, "*rows _"]) -> Float[Array, "*rows _"]:
    """Scales vectors along the last axis to unit length."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
