"""LPIPS 0.1 with VGG16, a perceptual distance between images (Zhang et al., arXiv 1801.03924).

The feature maps of VGG16 before each pooling and after the last convolution are scaled to unit
length at every pixel. The distance is a weighted sum over channels of their squared differences,
averaged over pixels and summed over the maps.

Parameter tree, and the names of torchvision's ``vgg16`` and of the ``lpips`` package::

    convs[i].kernel (3, 3, C_in, C)   .bias (C,)           features.0, 2, 5, 7, 10, ..., 28
    weights[k] (C_k,)                                      lin0.model.1 to lin4.model.1
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# ImageNet's mean and standard deviation for images in [-1, 1], from the official ScalingLayer.
_MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
_STD = np.array([0.458, 0.448, 0.450], np.float32)

MAX_CONVOLUTIONS = 256


@dataclasses.dataclass(frozen=True)
class LPIPSConfig:
    """Architecture of an :class:`LPIPS`; the defaults are VGG16's.

    Attributes:
        stages: Per stage the channels and the number of its convolutions; each stage but the last
            ends in a pooling that halves the size.
    """

    stages: Sequence[Sequence[int]] = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

    def __post_init__(self) -> None:
        # JSON has no tuples, but the configuration must be hashable.
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))
        depth = sum(depth for _, depth in self.stages)
        # A limit, so that a damaged configuration does not allocate modules without end.
        if depth > MAX_CONVOLUTIONS:
            raise ValueError(
                f"the stages have {depth} convolutions, expected at most {MAX_CONVOLUTIONS}"
            )


class LPIPS(nnx.Module):
    """The perceptual distance between images.

    Args:
        config: The architecture.
        rngs: Rngs of the initial weights.
        dtype: Precision of the convolutions; distances stay float32.
    """

    def __init__(self, config: LPIPSConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.dtype = dtype
        self.convs, self.weights = nnx.List([]), nnx.List([])
        in_channels = 3
        for channels, depth in config.stages:
            for _ in range(depth):
                self.convs.append(
                    nnx.Conv(in_channels, channels, (3, 3), padding=1, dtype=dtype, rngs=rngs)
                )
                in_channels = channels
            self.weights.append(nnx.Param(jnp.full(channels, 1 / channels, jnp.float32)))

    def features(
        self, images: Float[Array, "batch height width 3"]
    ) -> list[Float[Array, "batch _ _ _"]]:
        """Feature maps, scaled for :func:`distance`.

        Args:
            images: Images in [-1, 1], at least 16 pixels high and wide.

        Returns:
            One float32 array per stage.
        """
        x = ((images - _MEAN) / _STD).astype(self.dtype)
        maps, convs = [], iter(self.convs)
        for (_, depth), weights in zip(self.config.stages, self.weights, strict=True):
            if maps:
                x = nnx.max_pool(x, (2, 2), (2, 2))
            for _ in range(depth):
                x = nnx.relu(next(convs)(x))
            found = x.astype(jnp.float32)
            # The official code adds 1e-10 to the length, whose gradient at zero would be NaN.
            squares = jnp.sum(jnp.square(found), axis=-1, keepdims=True)
            length = jnp.sqrt(jnp.maximum(squares, 1e-20)) + 1e-10
            maps.append(found / length * jnp.sqrt(jnp.maximum(weights[...], 0)))
        return maps

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        others: Float[Array, "batch height width 3"],
    ) -> Float[Array, " batch"]:
        """The distance between each pair of images in [-1, 1]; zero for equal images."""
        return distance(self.features(images), self.features(others))


def distance(
    features: Sequence[Float[Array, "batch _ _ _"]],
    others: Sequence[Float[Array, "batch _ _ _"]],
) -> Float[Array, " batch"]:
    """Distances between images, from their :meth:`LPIPS.features`."""
    maps = [
        jnp.square(one - other).sum(-1).mean((1, 2))
        for one, other in zip(features, others, strict=True)
    ]
    return jnp.sum(jnp.stack(maps), axis=0)
