"""ArcFace's IR-SE50 face recognition network (Deng et al., arXiv 1801.07698), for inference.

The network of the official file ``models/facial_recognition/model_irse.py``: a ResNet of
pre-activated blocks with squeeze-and-excitation, and batch normalization with stored statistics.

Parameter tree, with ``Norm`` standing for ``scale``, ``bias`` (``nnx.Param``) and ``mean``, ``var``
(``Buffer``), each ``(C,)``, and every convolution's kernel in HWIO layout::

    stem.conv.kernel (3, 3, 3, 64)   stem.norm: Norm   stem.slope (64,)        input_layer.0, 1, 2
    blocks[i].norm1: Norm            on the block's input channels             res_layer.0
    blocks[i].conv1.kernel (3, 3, C_in, C)    blocks[i].slope (C,)             res_layer.1, 2
    blocks[i].conv2.kernel (3, 3, C, C)       blocks[i].norm2: Norm            res_layer.3, 4
    blocks[i].squeeze.kernel (C, C / 16)      blocks[i].excite.kernel (C / 16, C)
                                              1x1 convolutions there           res_layer.5.fc1, fc2
    blocks[i].shortcut_conv.kernel (1, 1, C_in, C)   blocks[i].shortcut_norm: Norm
                                              only where C_in != C             shortcut_layer.0, 1
    norm: Norm                                                                 output_layer.0
    kernel (7, 7, 512, 512)   bias (512,)     (height, width, C, embedding)    output_layer.3
    embedding_norm: Norm                                                       output_layer.4

The official last layer is a linear layer on the flattened NCHW map: its weight
``(512, 512 * 7 * 7)`` becomes ``kernel`` by ``reshape(512, 512, 7, 7).transpose(2, 3, 1, 0)``.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.models.variables import Buffer

# A limit, so that a damaged configuration does not allocate modules without end; IR-SE152 has 50.
MAX_BLOCKS = 256


@dataclasses.dataclass(frozen=True)
class ArcFaceConfig:
    """Architecture of an IR-SE network; the defaults are IR-SE50 on 112 x 112 images.

    Attributes:
        image_size: Height and width of the input; a multiple of ``2 ** len(stages)``.
        stem_width: Channels of the first convolution.
        stages: Per stage its channels and its number of blocks; the first block halves the size.
        reduction: The squeeze-and-excitation bottleneck has ``channels // reduction`` units.
        embedding_dim: Length of the output vector.
    """

    image_size: int = 112
    stem_width: int = 64
    stages: Sequence[Sequence[int]] = ((64, 3), (128, 4), (256, 14), (512, 3))
    reduction: int = 16
    embedding_dim: int = 512

    def __post_init__(self) -> None:
        # JSON has no tuples, but the configuration must be hashable.
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))
        blocks = sum(depth for _, depth in self.stages)
        if blocks > MAX_BLOCKS:
            raise ValueError(f"the stages have {blocks} blocks, expected at most {MAX_BLOCKS}")


class InferenceBatchNorm(nnx.Module):
    """Batch normalization over the last axis with stored statistics, that is, an affine map."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = Buffer(jnp.zeros(features))
        self.var = Buffer(jnp.ones(features))

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        gain = self.scale[...] / jnp.sqrt(self.var[...] + 1e-5)
        offset = self.bias[...] - self.mean[...] * gain
        return x * gain.astype(x.dtype) + offset.astype(x.dtype)


def prelu(x: Float[Array, "*batch C"], slope: Float[Array, " C"]) -> Float[Array, "*batch C"]:
    """Leaky ReLU with a learned slope per channel."""
    return jnp.where(x >= 0, x, x * slope.astype(x.dtype))


def _convolution(
    in_channels: int,
    out_channels: int,
    size: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    stride: int = 1,
) -> nnx.Conv:
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        rngs=rngs,
    )


class Stem(nnx.Module):
    """The first convolution, with batch normalization and PReLU; preserves the image size."""

    def __init__(
        self,
        width: int,
        *,
        in_channels: int = 3,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.conv = _convolution(in_channels, width, 3, rngs, dtype)
        self.norm = InferenceBatchNorm(width)
        self.slope = nnx.Param(jnp.full(width, 0.25, jnp.float32))

    def __call__(self, images: Float[Array, "batch H W inputs"]) -> Float[Array, "batch H W C"]:
        return prelu(self.norm(self.conv(images)), self.slope[...])


class ResidualBlock(nnx.Module):
    """``bottleneck_IR_SE``: a residual block with squeeze-and-excitation."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        reduction: int = 16,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.stride = stride
        self.norm1 = InferenceBatchNorm(in_channels)
        self.conv1 = _convolution(in_channels, channels, 3, rngs, dtype)
        self.slope = nnx.Param(jnp.full(channels, 0.25, jnp.float32))
        self.conv2 = _convolution(channels, channels, 3, rngs, dtype, stride)
        self.norm2 = InferenceBatchNorm(channels)
        bottleneck = channels // reduction
        self.squeeze = nnx.Linear(channels, bottleneck, use_bias=False, dtype=dtype, rngs=rngs)
        self.excite = nnx.Linear(bottleneck, channels, use_bias=False, dtype=dtype, rngs=rngs)
        if in_channels == channels:
            self.shortcut_conv = self.shortcut_norm = None
        else:
            self.shortcut_conv = _convolution(in_channels, channels, 1, rngs, dtype, stride)
            self.shortcut_norm = InferenceBatchNorm(channels)

    def __call__(self, x: Float[Array, "batch H W C_in"]) -> Float[Array, "batch h w C"]:
        if self.shortcut_conv is None or self.shortcut_norm is None:
            shortcut = x[:, :: self.stride, :: self.stride]
        else:
            shortcut = self.shortcut_norm(self.shortcut_conv(x))
        x = prelu(self.conv1(self.norm1(x)), self.slope[...])
        x = self.norm2(self.conv2(x))
        weights = self.excite(nnx.relu(self.squeeze(x.mean((1, 2)))))
        return x * nnx.sigmoid(weights)[:, None, None] + shortcut


def residual_blocks(
    in_channels: int,
    stages: Sequence[Sequence[int]],
    reduction: int,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
) -> Iterator[ResidualBlock]:
    """The blocks of all stages, each given by its channels and its number of blocks."""
    for channels, depth in stages:
        for i in range(depth):
            stride = 2 if i == 0 else 1
            yield ResidualBlock(
                in_channels, channels, stride, reduction=reduction, rngs=rngs, dtype=dtype
            )
            in_channels = channels


class ArcFace(nnx.Module):
    """Maps an image of a face to a unit vector; similar faces have similar vectors.

    Args:
        config: The architecture.
        rngs: Rngs of the initial weights.
        dtype: Precision of the layers; parameters and the result stay float32.
    """

    def __init__(self, config: ArcFaceConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.dtype = dtype
        self.stem = Stem(config.stem_width, rngs=rngs, dtype=dtype)
        self.blocks = nnx.List(
            residual_blocks(
                config.stem_width, config.stages, config.reduction, rngs=rngs, dtype=dtype
            )
        )
        in_channels = config.stages[-1][0]
        self.norm = InferenceBatchNorm(in_channels)
        size = config.image_size // 2 ** len(config.stages)
        shape = (size, size, in_channels, config.embedding_dim)
        init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2))
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(config.embedding_dim))
        self.embedding_norm = InferenceBatchNorm(config.embedding_dim)

    def __call__(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch E"]:
        """Embeds aligned and cropped faces.

        Args:
            images: In [-1, 1], ``config.image_size`` pixels high and wide.

        Returns:
            Unit vectors, float32.

        Raises:
            InputError: The images have another size or layout.
        """
        size = self.config.image_size
        if images.shape[1:] != (size, size, 3):
            raise InputError(
                f"images have shape {images.shape}, expected (batch, {size}, {size}, 3)"
            )
        x = self.stem(images.astype(self.dtype))
        for block in self.blocks:
            x = block(x)
        x = jnp.einsum("bhwc,hwce->be", self.norm(x), self.kernel[...].astype(self.dtype))
        x = self.embedding_norm(x.astype(jnp.float32) + self.bias[...])
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
