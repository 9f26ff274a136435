"""e4e, an encoder of images to W+ (Tov et al., arXiv 2102.02766), for inference.

``image -> IR-SE network -> pyramid of three feature maps -> one style head per layer -> W+``. The
backbone consists of ArcFace's blocks. The first head predicts a code that all layers share; the
others predict their layers' differences from it. The mean latent is added to all of them.

:meth:`E4EConfig.restyle` is the e4e variant of ReStyle (Alaluf et al., arXiv 2104.02699): it also
gets the generator's image of its previous prediction, refines the prediction in several rounds, and
all its heads read the last feature map.

Parameter tree, ``stem`` and ``blocks`` as in :mod:`styleclip_jax.models.arcface`::

    laterals[i].kernel (1, 1, C_i, C)   .bias (C,)         latlayer1 (32 pixels), latlayer2 (64)
    heads[i].convs[j].kernel (3, 3, C, w_dim)   .bias      styles.i.convs.2j
    heads[i].linear.kernel (w_dim, w_dim)   .bias          styles.i.linear
    mean_latent (num_layers, w_dim)                        latent_avg
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.models.arcface import MAX_BLOCKS, Stem, residual_blocks
from styleclip_jax.models.stylegan2 import EqualizedLinear
from styleclip_jax.models.variables import Buffer

# A limit, so that a damaged configuration does not allocate modules without end.
MAX_LAYERS = 64


@dataclasses.dataclass(frozen=True)
class E4EConfig:
    """Architecture of an :class:`E4E` encoder; the defaults are the official one for 1024 pixels.

    Attributes:
        image_height: Height of the input in pixels; cars have 192.
        image_width: Width of the input, a power of two.
        in_channels: 3, or 6 for an image and that of the previous prediction (ReStyle).
        num_layers: Number of latent vectors in W+.
        w_dim: Width of a latent vector.
        middle_layer: The first layer whose head reads the second-to-last feature map.
        fine_layer: The first layer whose head reads the third-to-last feature map.
        rounds: Number of rounds, each of which refines the previous prediction (ReStyle: 5).
        stem_width: Channels of the first convolution.
        stages: Per stage its channels and its number of blocks; the first block halves the size.
        reduction: The squeeze-and-excitation bottleneck has ``channels // reduction`` units.
    """

    image_height: int = 256
    image_width: int = 256
    in_channels: int = 3
    num_layers: int = 18
    w_dim: int = 512
    middle_layer: int = 3
    fine_layer: int = 7
    rounds: int = 1
    stem_width: int = 64
    stages: Sequence[Sequence[int]] = ((64, 3), (128, 4), (256, 14), (512, 3))
    reduction: int = 16

    def __post_init__(self) -> None:
        # JSON has no tuples, but the configuration must be hashable.
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))
        if self.in_channels not in (3, 6):
            raise ValueError(f"in_channels is {self.in_channels}, expected 3 or 6")
        if (self.in_channels == 3) != (self.rounds == 1):
            raise ValueError(
                f"rounds is {self.rounds} with in_channels {self.in_channels}, expected 1 round"
                " with 3 channels, or several with 6"
            )
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise ValueError(f"num_layers is {self.num_layers}, expected 1 to {MAX_LAYERS}")
        if not 1 <= self.middle_layer <= self.fine_layer:
            raise ValueError(
                f"middle_layer is {self.middle_layer} and fine_layer {self.fine_layer}, expected"
                " 1 <= middle_layer <= fine_layer"
            )
        if len(self.stages) < 3:
            raise ValueError(f"there are {len(self.stages)} stages, expected at least 3")
        blocks = sum(depth for _, depth in self.stages)
        if blocks > MAX_BLOCKS:
            raise ValueError(f"the stages have {blocks} blocks, expected at most {MAX_BLOCKS}")
        width, smallest = self.image_width, 2 ** (len(self.stages) + 1)
        if width < smallest or width.bit_count() != 1:
            raise ValueError(f"image_width is {width}, expected a power of two from {smallest}")
        if not 1 <= self.image_height <= width:
            raise ValueError(f"image_height is {self.image_height}, expected 1 to {width}")

    @classmethod
    def restyle(cls, num_layers: int = 18) -> "E4EConfig":
        """ReStyle-e4e for faces: six input channels, five rounds, one feature map for all heads."""
        return cls(
            in_channels=6,
            num_layers=num_layers,
            middle_layer=num_layers,
            fine_layer=num_layers,
            rounds=5,
        )

    @property
    def pyramid(self) -> tuple[int, ...]:
        """The feature map of every layer's head, counted from the last: 0, 1 or 2."""
        return tuple(
            (i >= self.middle_layer) + (i >= self.fine_layer) for i in range(self.num_layers)
        )


@functools.cache
def aligned_corners_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Linear interpolation of one axis with aligned corners (``align_corners=True``)."""
    positions = np.linspace(0, source - 1, target)
    weights = 1 - np.abs(positions[:, None] - np.arange(source))
    return np.maximum(weights, 0).astype(np.float32)


def upsample_to(
    x: Float[Array, "batch h w C"], height: int, width: int
) -> Float[Array, "batch {height} {width} C"]:
    """Bilinear interpolation with aligned corners."""
    highest = jax.lax.Precision.HIGHEST
    rows = jnp.asarray(aligned_corners_matrix(x.shape[1], height), x.dtype)
    columns = jnp.asarray(aligned_corners_matrix(x.shape[2], width), x.dtype)
    x = jnp.einsum("jh,bhwc->bjwc", rows, x, precision=highest)
    return jnp.einsum("kw,bjwc->bjkc", columns, x, precision=highest)


class StyleHead(nnx.Module):
    """``GradualStyleBlock``: convolutions of stride 2 down to one pixel, then a linear layer."""

    def __init__(
        self, in_channels: int, w_dim: int, size: int, *, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        depth = int(math.log2(size))
        self.convs = nnx.List(
            nnx.Conv(
                in_channels if i == 0 else w_dim,
                w_dim,
                (3, 3),
                strides=2,
                padding=1,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(depth)
        )
        self.linear = EqualizedLinear(w_dim, w_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width C"]) -> Float[Array, "batch w_dim"]:
        for conv in self.convs:
            x = nnx.leaky_relu(conv(x))
        return self.linear(x.reshape(len(x), -1).astype(jnp.float32))


class E4E(nnx.Module):
    """Maps images to W+ latents that reproduce them and can be edited.

    Args:
        config: The architecture.
        rngs: Rngs of the initial weights.
        dtype: Precision of the convolutions; parameters and latents stay float32.
    """

    def __init__(self, config: E4EConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.dtype = dtype
        self.stem = Stem(config.stem_width, in_channels=config.in_channels, rngs=rngs, dtype=dtype)
        self.blocks = nnx.List(
            residual_blocks(
                config.stem_width, config.stages, config.reduction, rngs=rngs, dtype=dtype
            )
        )
        features = config.stages[-1][0]
        self.laterals = nnx.List(
            nnx.Conv(config.stages[-2 - i][0], features, (1, 1), padding=0, dtype=dtype, rngs=rngs)
            for i in range(max(config.pyramid))
        )
        last_size = config.image_width >> len(config.stages)
        self.heads = nnx.List(
            StyleHead(features, config.w_dim, last_size << level, rngs=rngs, dtype=dtype)
            for level in config.pyramid
        )
        self.mean_latent = Buffer(jnp.zeros((config.num_layers, config.w_dim)))

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        latents: Float[Array, "batch layers w_dim"] | None = None,
    ) -> Float[Array, "batch layers w_dim"]:
        """One round of encoding.

        Args:
            images: Images in [-1, 1] of the configured size. With six channels, an image followed
                by the generator's image of ``latents``.
            latents: Latents to which the prediction is added. None: the mean latent.

        Returns:
            W+ latents, float32.

        Raises:
            InputError: The images have another size or number of channels.
        """
        config = self.config
        expected = (config.image_height, config.image_width, config.in_channels)
        if images.shape[1:] != expected:
            raise InputError(
                f"images have shape {images.shape}, expected"
                f" (batch, {', '.join(map(str, expected))}) for this encoder"
            )
        x = self.stem(images.astype(self.dtype))
        maps, blocks = [], iter(self.blocks)
        for _, depth in config.stages:
            for _ in range(depth):
                x = next(blocks)(x)
            maps.append(x)
        pyramid = [maps[-1]]
        for lateral, finer in zip(self.laterals, maps[-2::-1], strict=False):
            pyramid.append(upsample_to(pyramid[-1], *finer.shape[1:3]) + lateral(finer))
        codes = [
            head(pyramid[level]) for head, level in zip(self.heads, config.pyramid, strict=True)
        ]
        first, *deltas = codes
        codes = jnp.stack([first, *(first + delta for delta in deltas)], axis=1)
        return codes + (self.mean_latent[...] if latents is None else latents)
