"""Random views of images, which make the CLIP loss robust to adversarial patterns.

An optimization can lower the CLIP loss with meaningless patterns. The mean loss over several
shifted or noisy views is harder to fool (FuseDream, arXiv 2112.01573). The kinds and their ranges
are those of DiffAugment (arXiv 2006.10738), plus zoom and noise. All are differentiable.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Images = Float[Array, "batch size size 3"]

LARGEST_SHIFT = 1 / 16
LARGEST_NOISE = 0.05


def random_views(
    images: Images, key: PRNGKeyArray, count: int, kinds: Sequence[str]
) -> Float[Array, "count batch size size 3"]:
    """Makes random views, the same for all images, so that results do not depend on the batch.

    Args:
        images: Square images in [-1, 1].
        key: Key of the views.
        count: Number of views of every image.
        kinds: Keys of :data:`VIEWS`; every view applies all of them, in the order of that table.
    """

    def view(key: PRNGKeyArray) -> Array:
        seen = images
        for i, (kind, change) in enumerate(VIEWS.items()):
            if kind in kinds:
                seen = change(jax.random.fold_in(key, i), seen)
        return seen

    return jax.vmap(view)(jax.random.split(key, count))


def _color(key: PRNGKeyArray, images: Images) -> Images:
    """Brightness +-0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = jax.random.uniform(
        key, (3,), minval=jnp.array([-0.5, 0, 0.5]), maxval=jnp.array([0.5, 2, 1.5])
    )
    images = images + brightness
    gray = images.mean(axis=-1, keepdims=True)
    images = gray + saturation * (images - gray)
    level = images.mean(axis=(1, 2, 3), keepdims=True)
    return level + contrast * (images - level)


def _shift(key: PRNGKeyArray, images: Images) -> Images:
    """Shifts by whole pixels, up to 1/16 of the width; the border is repeated."""
    size = images.shape[1]
    most = round(LARGEST_SHIFT * size)
    down, right = jax.random.randint(key, (2,), -most, most + 1)
    pixels = jnp.arange(size)
    return _resample(images, pixels - down, pixels - right)


def _resize(key: PRNGKeyArray, images: Images) -> Images:
    """Zooms about the center, 0.8 to 1.2 times; the border is repeated."""
    scale = jax.random.uniform(key, minval=0.8, maxval=1.2)
    center = (images.shape[1] - 1) / 2
    positions = center + (jnp.arange(images.shape[1], dtype=jnp.float32) - center) / scale
    return _resample(images, positions, positions)


def _cutout(key: PRNGKeyArray, images: Images) -> Images:
    """A gray square of half the side, centered anywhere in the image."""
    size = images.shape[1]
    centers = jax.random.randint(key, (2, 1), 0, size)
    start = centers - size // 4
    inside = (jnp.arange(size) >= start) & (jnp.arange(size) < start + size // 2)
    square = inside[0][:, None] & inside[1]
    return jnp.where(square[..., None], 0, images)


def _noise(key: PRNGKeyArray, images: Images) -> Images:
    """Gaussian noise with a standard deviation up to 0.05."""
    strength, pattern = jax.random.split(key)
    sigma = jax.random.uniform(strength, maxval=LARGEST_NOISE)
    return images + sigma * jax.random.normal(pattern, images.shape[1:])


VIEWS: dict[str, Callable[[PRNGKeyArray, Images], Images]] = {
    "color": _color,
    "shift": _shift,
    "resize": _resize,
    "cutout": _cutout,
    "noise": _noise,
}


def _resample(images: Images, rows: Array, columns: Array) -> Images:
    """Linear interpolation at positions per axis.

    Uses matrix products, because gathers are slow on a CPU, especially in the gradient.
    """

    def matrix(positions: Array) -> Array:
        pixels = jnp.arange(images.shape[1], dtype=jnp.float32)
        positions = jnp.clip(positions.astype(jnp.float32), 0, len(pixels) - 1)
        return jnp.maximum(0.0, 1.0 - jnp.abs(positions[:, None] - pixels))

    highest = jax.lax.Precision.HIGHEST
    images = jnp.einsum("jh,bhwc->bjwc", matrix(rows), images, precision=highest)
    return jnp.einsum("kw,bjwc->bjkc", matrix(columns), images, precision=highest)
