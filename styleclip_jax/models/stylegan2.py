"""StyleGAN2 generator with skip connections (Karras et al. 2020, arXiv 1912.04958).

``z -> mapping -> w -> w_plus -> affine -> styles -> synthesis -> image``: every arrow is a method,
so that edits are possible in W+ and in StyleSpace.

Weights are stored raw, as in the official files; the equalized learning rate scales them at run
time. Two identities make the synthesis fast without changing its result:

* scaling the input channels of a convolution by the style equals scaling its kernel, so all
  images of a batch share one kernel and no grouped convolution is needed;
* a stride-2 transposed convolution is a 2x2 convolution that yields the four phases of the output
  grid, and the blur that follows can be applied to the phases before they are interleaved.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.models.variables import Buffer

StyleSpace = tuple[Float[Array, "batch _"], ...]

# The [1, 3, 3, 1] low-pass filter, normalized to a gain of 2 per axis: zeros inserted by a
# two-fold upsampling halve the mean.
_NEAR, _FAR = 0.75, 0.25


# A limit, so that a damaged configuration does not allocate modules without end.
MAX_MAPPING_LAYERS = 64


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of a :class:`Generator`.

    Attributes:
        resolution: Width and height of the image in pixels, a power of two from 8 to 1024.
        z_dim: Width of the Gaussian latent ``z``.
        w_dim: Width of the intermediate latent ``w``, and of the mapping network's layers.
        mapping_layers: Depth of the mapping network.
        channel_base: A layer at ``r`` pixels has ``min(channel_base // r, channel_max)`` channels.
        channel_max: See ``channel_base``.
        conv_clamp: Activations are clipped to ±conv_clamp (256 in NVIDIA's files). None: never.
        mapping_lr_multiplier: Learning-rate multiplier of the mapping network, which scales its
            weights and biases at run time.
    """

    resolution: int = 1024
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512
    conv_clamp: float | None = None
    mapping_lr_multiplier: float = 0.01

    def __post_init__(self):
        if self.resolution not in [2**n for n in range(3, 11)]:
            raise ValueError(
                f"resolution is {self.resolution}, expected a power of two from 8 to 1024"
            )
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.mapping_layers > MAX_MAPPING_LAYERS:
            raise ValueError(
                f"mapping_layers is {self.mapping_layers}, expected at most {MAX_MAPPING_LAYERS}"
            )
        if self.channel_base < self.resolution:
            raise ValueError(
                f"channel_base is {self.channel_base}, expected at least the resolution,"
                f" {self.resolution}"
            )
        if not 0 < self.mapping_lr_multiplier < math.inf:
            raise ValueError(
                f"mapping_lr_multiplier is {self.mapping_lr_multiplier}, expected a positive number"
            )
        if self.conv_clamp is not None and not self.conv_clamp > 0:
            raise ValueError(f"conv_clamp is {self.conv_clamp}, expected None or a positive number")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolutions of the synthesis network's blocks, from 4 pixels up."""
        return tuple(2**n for n in range(2, int(math.log2(self.resolution)) + 1))

    @property
    def num_layers(self) -> int:
        """Number of latent vectors in W+: 2 log2(resolution) - 2."""
        return 2 * len(self.resolutions)

    def channels(self, resolution: int) -> int:
        """Channels of the activations at ``resolution`` pixels."""
        return min(self.channel_base // resolution, self.channel_max)

    def check_w_plus(self, shape: tuple[int, ...]) -> None:
        """Raises InputError unless W+ latents have the shape (B, num_layers, w_dim)."""
        if shape[1:] != (self.num_layers, self.w_dim):
            raise InputError(
                f"latents have shape {shape}, expected (batch, {self.num_layers}, {self.w_dim}) for"
                " this generator"
            )

    def check_guide_resolution(self, resolution: int | None) -> None:
        """Raises InputError unless a block has the resolution of the images that losses see."""
        if resolution not in (None, *self.resolutions):
            raise InputError(
                f"guide_resolution is {resolution}, expected one of {self.resolutions}"
            )

    @property
    def style_dims(self) -> tuple[int, ...]:
        """Widths of the StyleSpace entries in the official order."""
        first = self.channels(4)
        dims = [first, first]
        for low, high in itertools.pairwise(self.resolutions):
            dims += [self.channels(low), self.channels(high), self.channels(high)]
        return tuple(dims)

    @property
    def rgb_style_indices(self) -> tuple[int, ...]:
        """Positions of the ToRGB layers' styles in StyleSpace."""
        return tuple(range(1, len(self.style_dims), 3))


def conv_entries(style_dims: Sequence[int]) -> tuple[int, ...]:
    """Positions of the convolutions' styles in StyleSpace; the others belong to ToRGB layers."""
    return tuple(i for i in range(len(style_dims)) if i % 3 != 1)


def leaky_relu(x: Array) -> Array:
    """Leaky ReLU with slope 0.2 and gain sqrt(2), which preserves the variance."""
    return jax.nn.leaky_relu(x, 0.2) * math.sqrt(2)


def inverse_leaky_relu(y: Array) -> Array:
    """The input for which :func:`leaky_relu` is ``y``."""
    return jnp.where(y < 0, y / 0.2, y) / math.sqrt(2)


def convolve(x: Array, kernel: Array, padding: int) -> Array:
    """2-D correlation of NHWC ``x`` with an HWIO ``kernel``, ``padding`` zeros on each side."""
    pads = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def trainable_convolve(x: Array, kernel: Array, padding: int) -> Array:
    """:func:`convolve` with a faster gradient of the kernel on CPUs, for training a generator.

    On CPUs, XLA takes many times longer for this gradient, a correlation with an image-sized
    kernel, than for one matrix product per tap. Forward-mode differentiation is not supported.
    """
    return convolve(x, kernel, padding)


def _trainable_convolve_forward(x, kernel, padding):
    return convolve(x, kernel, padding), (x, kernel)


def _trainable_convolve_backward(padding, residuals, gradient):
    def by_taps(x, kernel, gradient):
        padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        _, height, width, _ = gradient.shape
        taps = [
            [
                jnp.einsum("bhwi,bhwo->io", padded[:, u : u + height, v : v + width], gradient)
                for v in range(kernel.shape[1])
            ]
            for u in range(kernel.shape[0])
        ]
        return jnp.stack([jnp.stack(row) for row in taps])

    def by_convolution(x, kernel, gradient):
        return jax.vjp(lambda kernel: convolve(x, kernel, padding), kernel)[1](gradient)[0]

    x, kernel = residuals
    (of_x,) = jax.vjp(lambda x: convolve(x, kernel, padding), x)[1](gradient)
    of_kernel = lax.platform_dependent(x, kernel, gradient, cpu=by_taps, default=by_convolution)
    return of_x, of_kernel


trainable_convolve.defvjp(_trainable_convolve_forward, _trainable_convolve_backward)


def _transposed_phases(kernel: Array, axis: int) -> tuple[Array, Array]:
    """Two-tap kernels of the even and odd outputs of a stride-2 transposed convolution.

    With taps ``k``, output ``2j`` is ``x[j-1] k[2] + x[j] k[0]`` and output ``2j+1`` is
    ``x[j] k[1]``.
    """
    k0, k1, k2 = (lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    even = jnp.concatenate([k2, k0], axis)
    odd = jnp.concatenate([jnp.zeros_like(k1), k1], axis)
    return even, odd


def _blur_phases(even: Array, odd: Array, axis: int) -> tuple[Array, Array]:
    """The [1, 3, 3, 1] blur of the interleaved signal ``even, odd``, as its two phases.

    The inputs hold positions -1 to n+1 on ``axis``; the results positions 0 to n-1.
    """
    n = even.shape[axis] - 3

    def shift(x: Array, by: int) -> Array:
        return lax.slice_in_dim(x, by + 1, by + 1 + n, axis=axis)

    blurred_even = _FAR * (shift(odd, -1) + shift(even, 1)) + _NEAR * (
        shift(even, 0) + shift(odd, 0)
    )
    blurred_odd = _FAR * (shift(even, 0) + shift(odd, 1)) + _NEAR * (shift(odd, 0) + shift(even, 1))
    return blurred_even, blurred_odd


def _interleave(phases: list[list[Array]]) -> Array:
    """Interleaves ``phases[row][column]``, each (B, H, W, C), to (B, 2H, 2W, C)."""

    def interleave(even: Array, odd: Array, axis: int) -> Array:
        shape = list(even.shape)
        shape[axis] *= 2
        return jnp.stack([even, odd], axis + 1).reshape(shape)

    # One axis at a time, because JAX can propagate the sharding of a batch through such a reshape.
    even, odd = (interleave(*row, axis=2) for row in phases)
    return interleave(even, odd, axis=1)


# A function like :func:`convolve`, perhaps with another gradient.
Convolve = Callable[[Array, Array, int], Array]


def upsampling_convolve(x: Array, kernel: Array, convolve: Convolve = convolve) -> Array:
    """Stride-2 transposed 3x3 convolution, then the [1, 3, 3, 1] blur (StyleGAN2, section 2.1).

    Args:
        x: (B, H, W, C_in).
        kernel: (3, 3, C_in, C_out).
        convolve: Computes the convolution.

    Returns:
        (B, 2H, 2W, C_out).
    """
    batch, height, width, channels_in = x.shape
    channels_out = kernel.shape[-1]
    by_phase = [_transposed_phases(rows, 1) for rows in _transposed_phases(kernel, 0)]
    merged = jnp.stack([k for row in by_phase for k in row], axis=3)
    merged = merged.reshape(2, 2, channels_in, 4 * channels_out)
    y = convolve(x, merged, 2).reshape(batch, height + 3, width + 3, 4, channels_out)
    rows = _blur_phases(y[:, :, :, :2], y[:, :, :, 2:], axis=1)
    return _interleave([list(_blur_phases(row[..., 0, :], row[..., 1, :], axis=2)) for row in rows])


def upsample_image(image: Array) -> Array:
    """Two-fold upsampling of (B, H, W, C) with the [1, 3, 3, 1] filter, for the skip connection."""
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def phases(x: Array, axis: int) -> list[Array]:
        n = x.shape[axis] - 2
        before, here, after = (lax.slice_in_dim(x, i, i + n, axis=axis) for i in range(3))
        return [_FAR * before + _NEAR * here, _NEAR * here + _FAR * after]

    return _interleave([phases(row, 2) for row in phases(padded, 1)])


class EqualizedLinear(nnx.Module):
    """Linear layer with weights scaled by ``lr_multiplier / sqrt(in_features)`` at run time."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
        rngs: nnx.Rngs,
    ):
        kernel = jax.random.normal(rngs.params(), (in_features, out_features)) / lr_multiplier
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.full((out_features,), bias_init / lr_multiplier, jnp.float32))
        self.lr_multiplier = lr_multiplier

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        scale = self.lr_multiplier / math.sqrt(self.kernel.shape[0])
        # Cheap, but errors would affect everything, so never in TF32 or bfloat16 on accelerators.
        y = jnp.matmul(x, self.kernel[...] * scale, precision=lax.Precision.HIGHEST)
        return y + self.bias[...] * self.lr_multiplier


class MappingNetwork(nnx.Module):
    """The mapping network: pixel norm, then ``mapping_layers`` equalized linear layers."""

    def __init__(self, config: GeneratorConfig, *, rngs: nnx.Rngs):
        widths = [config.z_dim] + [config.w_dim] * config.mapping_layers
        self.layers = nnx.List(
            EqualizedLinear(i, o, lr_multiplier=config.mapping_lr_multiplier, rngs=rngs)
            for i, o in itertools.pairwise(widths)
        )

    def __call__(self, z: Float[Array, "batch z_dim"]) -> Float[Array, "batch w_dim"]:
        x = z * lax.rsqrt(jnp.mean(jnp.square(z), axis=-1, keepdims=True) + 1e-8)
        for layer in self.layers:
            x = leaky_relu(layer(x))
        return x


class StyledConv(nnx.Module):
    """Modulated and demodulated 3x3 convolution, fixed noise, bias, leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        *,
        upsample: bool,
        config: GeneratorConfig,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        convolve: Convolve,
    ):
        self.affine = EqualizedLinear(config.w_dim, in_channels, bias_init=1.0, rngs=rngs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 3, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros((out_channels,)))
        self.noise = Buffer(jax.random.normal(rngs.params(), (resolution, resolution)))
        self.noise_strength = nnx.Param(jnp.zeros(()))
        self.upsample = upsample
        self.clamp = config.conv_clamp
        self.dtype = dtype
        self.convolve = convolve

    def __call__(
        self, x: Float[Array, "batch _ _ inputs"], style: Float[Array, "batch inputs"]
    ) -> Float[Array, "batch height width outputs"]:
        kernel = self.kernel[...] * (1 / math.sqrt(9 * self.kernel.shape[2]))
        squares = jnp.sum(jnp.square(kernel), axis=(0, 1))
        norm = jnp.matmul(jnp.square(style), squares, precision=lax.Precision.HIGHEST)
        demodulation = lax.rsqrt(norm + 1e-8)[:, None, None].astype(self.dtype)
        kernel = kernel.astype(self.dtype)
        x = x.astype(self.dtype) * style[:, None, None].astype(self.dtype)
        if self.upsample:
            x = upsampling_convolve(x, kernel, self.convolve)
        else:
            x = self.convolve(x, kernel, 1)
        noise = self.noise[..., None] * self.noise_strength[...]
        x = leaky_relu(x * demodulation + (noise + self.bias[...]).astype(self.dtype))
        return x if self.clamp is None else jnp.clip(x, -self.clamp, self.clamp)


class ToRGB(nnx.Module):
    """Modulated 1x1 convolution to three channels, without demodulation."""

    def __init__(
        self, in_channels: int, *, config: GeneratorConfig, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        self.affine = EqualizedLinear(config.w_dim, in_channels, bias_init=1.0, rngs=rngs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (in_channels, 3)))
        self.bias = nnx.Param(jnp.zeros((3,)))
        self.clamp = config.conv_clamp
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "batch height width inputs"], style: Float[Array, "batch inputs"]
    ) -> Float[Array, "batch height width 3"]:
        # One (inputs, 3) kernel per image is small; scaling the activations costs more.
        kernel = self.kernel[...] * style[:, :, None] * (1 / math.sqrt(self.kernel.shape[0]))
        rgb = jnp.einsum("bhwc,bcr->bhwr", x.astype(self.dtype), kernel.astype(self.dtype))
        # The sum over resolutions stays in float32, as in the official mixed-precision code.
        rgb = rgb.astype(jnp.float32) + self.bias[...]
        return rgb if self.clamp is None else jnp.clip(rgb, -self.clamp, self.clamp)


class Synthesis(nnx.Module):
    """The synthesis network.

    ``convs[0]`` and ``rgbs[0]`` at 4 pixels, then two convolutions and one ToRGB per resolution.
    """

    def __init__(
        self, config: GeneratorConfig, *, rngs: nnx.Rngs, dtype: DTypeLike, convolve: Convolve
    ):
        self.constant = nnx.Param(jax.random.normal(rngs.params(), (4, 4, config.channels(4))))
        convs, rgbs, previous = [], [], config.channels(4)
        for resolution in config.resolutions:
            channels = config.channels(resolution)
            for upsample in (False,) if resolution == 4 else (True, False):
                convs.append(
                    StyledConv(
                        previous,
                        channels,
                        resolution,
                        upsample=upsample,
                        config=config,
                        rngs=rngs,
                        dtype=dtype,
                        convolve=convolve,
                    )
                )
                previous = channels
            rgbs.append(ToRGB(channels, config=config, rngs=rngs, dtype=dtype))
        self.convs = nnx.List(convs)
        self.rgbs = nnx.List(rgbs)

    def __call__(
        self, styles: StyleSpace, resolution: int
    ) -> Float[Array, "batch resolution resolution 3"]:
        return self.skip_images(styles, resolution)[-1]

    def skip_images(
        self, styles: StyleSpace, resolution: int
    ) -> list[Float[Array, "batch height height 3"]]:
        """The images of the skip connection at 4, 8, ..., ``resolution`` pixels."""
        conv_styles = [s for i, s in enumerate(styles) if i % 3 != 1]
        rgb_styles = styles[1::3]
        x = jnp.broadcast_to(self.constant[...], (styles[0].shape[0], *self.constant.shape))
        x = self.convs[0](x, conv_styles[0])
        images = [self.rgbs[0](x, rgb_styles[0])]
        for k in range(1, int(math.log2(resolution)) - 1):
            for i in (2 * k - 1, 2 * k):
                x = self.convs[i](x, conv_styles[i])
            images.append(upsample_image(images[-1]) + self.rgbs[k](x, rgb_styles[k]))
        return images


class Generator(nnx.Module):
    """StyleGAN2 generator; parity with the official PyTorch code is tested to 1e-4.

    By default, accelerators multiply float32 arrays in shorter formats (TF32 on NVIDIA GPUs,
    bfloat16 on TPUs), including the convolutions of every network here. Under
    ``jax.default_matmul_precision("highest")`` they are exact.

    Args:
        config: The architecture.
        rngs: Rngs of the initial weights.
        dtype: Precision of the convolutions; parameters, latents and images stay float32.
        convolve: Computes the 3x3 convolutions; :func:`trainable_convolve` is for training.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        convolve: Convolve = convolve,
    ):
        self.config = config
        self.mapping = MappingNetwork(config, rngs=rngs)
        self.synthesis = Synthesis(config, rngs=rngs, dtype=dtype, convolve=convolve)
        self.mean_w = Buffer(jnp.zeros((config.w_dim,)))

    @property
    def num_layers(self) -> int:
        """Number of latent vectors in W+."""
        return self.config.num_layers

    def mean_latents(self, batch: int) -> Float[Array, "batch layers w_dim"]:
        """The mean latent in W+, ``batch`` times; the start for generating an image from a text."""
        return jnp.broadcast_to(self.mean_w[...], (batch, self.num_layers, self.config.w_dim))

    def map(
        self, z: Float[Array, "batch z_dim"], truncation: float | Float[Array, ""] = 1.0
    ) -> Float[Array, "batch layers w_dim"]:
        """Maps Gaussian latents to W+, truncated towards the mean latent.

        Args:
            z: Standard normal latents.
            truncation: 1 does not change ``w``, 0 gives the mean latent (StyleGAN, section B).

        Returns:
            The same ``w`` for every layer.

        Raises:
            InputError: ``z`` is not (B, z_dim).
        """
        if z.ndim != 2 or z.shape[1] != self.config.z_dim:
            raise InputError(
                f"z has shape {z.shape}, expected (batch, {self.config.z_dim}) for this generator"
            )
        w = self.mapping(z)
        w = self.mean_w[...] + truncation * (w - self.mean_w[...])
        return jnp.broadcast_to(w[:, None], (w.shape[0], self.num_layers, w.shape[1]))

    def styles(self, w_plus: Float[Array, "batch layers w_dim"]) -> StyleSpace:
        """The StyleSpace coordinates of W+ latents, in the official order.

        Raises:
            InputError: The latents are not (B, num_layers, w_dim).
        """
        self.config.check_w_plus(w_plus.shape)
        convs, rgbs = self.synthesis.convs, self.synthesis.rgbs
        styles = [convs[0].affine(w_plus[:, 0]), rgbs[0].affine(w_plus[:, 1])]
        for k in range(1, len(rgbs)):
            for i in (2 * k - 1, 2 * k):
                styles.append(convs[i].affine(w_plus[:, i]))
            styles.append(rgbs[k].affine(w_plus[:, 2 * k + 1]))
        return tuple(styles)

    def synthesize(
        self, styles: StyleSpace, resolution: int | None = None
    ) -> Float[Array, "batch resolution resolution 3"]:
        """Synthesizes the images of StyleSpace coordinates.

        Args:
            styles: One (B, C_i) array per layer; widths are ``config.style_dims``.
            resolution: Stop at this lower resolution and return the skip output there, the same
                image at a fraction of the cost. None: full resolution.

        Returns:
            Images in about [-1, 1], not clipped.

        Raises:
            InputError: The styles do not match the generator, or ``resolution`` is not one of
                ``config.resolutions``.
        """
        widths = tuple(s.shape[-1] for s in styles)
        if widths != self.config.style_dims:
            raise InputError(
                f"styles have widths {list(widths)}, expected {list(self.config.style_dims)} for"
                " this generator"
            )
        resolution = self.config.resolution if resolution is None else resolution
        if resolution not in self.config.resolutions:
            raise InputError(
                f"resolution is {resolution}, expected one of {self.config.resolutions}"
            )
        return self.synthesis(styles, resolution)

    def __call__(
        self, w_plus: Float[Array, "batch layers w_dim"], resolution: int | None = None
    ) -> Float[Array, "batch resolution resolution 3"]:
        """Synthesizes the images of W+ latents; see :meth:`synthesize`."""
        return self.synthesize(self.styles(w_plus), resolution)
