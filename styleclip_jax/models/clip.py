"""CLIP with a vision transformer (Radford et al. 2021, arXiv 2103.00020; openai/CLIP model.py)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from styleclip_jax.errors import InputError

# How images are prepared for a CLIP; see :func:`styleclip_jax.losses.clip_pixels`.
Preprocess = Literal["styleclip", "clip", "bicubic"]
# A limit, so that a damaged configuration does not allocate modules without end.
MAX_LAYERS = 256


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Architecture of a :class:`CLIP`; the defaults are ViT-B/32.

    Attributes:
        image_size: Width and height of the input in pixels, a multiple of ``patch_size``.
        patch_size: Width and height of a patch in pixels.
        vision_width: Width of the image transformer.
        vision_layers: Depth of the image transformer.
        vision_heads: Attention heads of the image transformer.
        text_width: Width of the text transformer.
        text_layers: Depth of the text transformer.
        text_heads: Attention heads of the text transformer.
        embed_dim: Width of the shared space of images and texts.
        context_length: Tokens per text, including the start and end tokens.
        vocab_size: Number of tokens; the end-of-text token is the last one.
    """

    image_size: int = 224
    patch_size: int = 32
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    embed_dim: int = 512
    context_length: int = 77
    vocab_size: int = 49408

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            if size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1")
        for name in ("vision_layers", "text_layers"):
            if getattr(self, name) > MAX_LAYERS:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at most {MAX_LAYERS}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        for width, heads in (
            (self.vision_width, self.vision_heads),
            (self.text_width, self.text_heads),
        ):
            if width % heads:
                raise ValueError(f"{heads} attention heads do not divide the width {width}")

    @classmethod
    def vit_b32(cls) -> "CLIPConfig":
        """OpenAI's ViT-B/32, used by the official StyleCLIP."""
        return cls()

    @classmethod
    def vit_b16(cls) -> "CLIPConfig":
        """OpenAI's ViT-B/16."""
        return cls(patch_size=16)

    @classmethod
    def vit_l14(cls) -> "CLIPConfig":
        """OpenAI's ViT-L/14."""
        return cls(
            patch_size=14,
            vision_width=1024,
            vision_layers=24,
            vision_heads=16,
            text_width=768,
            text_heads=12,
            embed_dim=768,
        )

    @classmethod
    def vit_l14_336(cls) -> "CLIPConfig":
        """OpenAI's ViT-L/14@336px."""
        return dataclasses.replace(cls.vit_l14(), image_size=336)


def quick_gelu(x: Array) -> Array:
    """The sigmoid approximation of GELU in OpenAI's models."""
    return x * jax.nn.sigmoid(1.702 * x)


class Attention(nnx.Module):
    """Multi-head self-attention, causal for texts."""

    def __init__(self, width: int, heads: int, *, causal: bool, rngs: nnx.Rngs, dtype: DTypeLike):
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.causal = causal

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        y = jax.nn.dot_product_attention(
            qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=self.causal
        )
        return self.out(y.reshape(batch, length, width))


def _layer_norm(width: int, *, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.LayerNorm:
    # As in PyTorch: the variance of the centered values, which is more accurate.
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, *, causal: bool, rngs: nnx.Rngs, dtype: DTypeLike):
        self.norm1 = _layer_norm(width, rngs=rngs, dtype=dtype)
        self.attention = Attention(width, heads, causal=causal, rngs=rngs, dtype=dtype)
        self.norm2 = _layer_norm(width, rngs=rngs, dtype=dtype)
        self.mlp_in = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.mlp_out = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp_out(quick_gelu(self.mlp_in(self.norm2(x))))


def _embed_patches(
    pixels: Float[Array, "batch size size channels"],
    kernel: Float[Array, "patch patch channels width"],
    *_strides: object,
    **_options: object,
) -> Float[Array, "batch rows rows width"]:
    """The convolution as one product: on a CPU, XLA computes its gradient seven times faster."""
    batch, size, _, channels = pixels.shape
    patch = kernel.shape[0]
    rows = size // patch
    # One axis at a time, because JAX can propagate the sharding of a batch through such a reshape.
    patches = pixels.reshape(batch, rows, patch, size, channels)
    patches = patches.reshape(batch, rows, patch, rows, patch, channels)
    return jnp.einsum("byixjc,ijcw->byxw", patches, kernel)


class VisionTower(nnx.Module):
    """Vision transformer; the class token's last state is projected to the shared space."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, patch = config.vision_width, (config.patch_size, config.patch_size)
        tokens = 1 + (config.image_size // config.patch_size) ** 2
        self.patch_embedding = nnx.Conv(
            3,
            width,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            conv_general_dilated=_embed_patches,
            rngs=rngs,
        )
        scale = width**-0.5
        self.class_embedding = nnx.Param(scale * jax.random.normal(rngs.params(), (width,)))
        self.position_embedding = nnx.Param(
            scale * jax.random.normal(rngs.params(), (tokens, width))
        )
        self.pre_norm = _layer_norm(width, rngs=rngs, dtype=dtype)
        self.blocks = nnx.List(
            Block(width, config.vision_heads, causal=False, rngs=rngs, dtype=dtype)
            for _ in range(config.vision_layers)
        )
        self.post_norm = _layer_norm(width, rngs=rngs, dtype=dtype)
        self.projection = nnx.Linear(
            width, config.embed_dim, use_bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, pixels: Float[Array, "batch size size 3"]) -> Float[Array, "batch embed"]:
        x = self.patch_embedding(pixels)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        # Derived from x, so that it is on the same devices.
        first = jnp.zeros_like(x[:, :1]) + self.class_embedding[...].astype(x.dtype)
        x = jnp.concatenate([first, x], axis=1)
        x = self.pre_norm(x + self.position_embedding[...].astype(x.dtype))
        for block in self.blocks:
            x = block(x)
        return self.projection(self.post_norm(x[:, 0]))


class TextTower(nnx.Module):
    """Causal transformer; the end-of-text token's last state is projected to the shared space."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width = config.text_width
        self.token_embedding = nnx.Embed(
            config.vocab_size,
            width,
            embedding_init=nnx.initializers.normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )
        self.position_embedding = nnx.Param(
            0.01 * jax.random.normal(rngs.params(), (config.context_length, width))
        )
        self.blocks = nnx.List(
            Block(width, config.text_heads, causal=True, rngs=rngs, dtype=dtype)
            for _ in range(config.text_layers)
        )
        self.final_norm = _layer_norm(width, rngs=rngs, dtype=dtype)
        self.projection = nnx.Linear(
            width, config.embed_dim, use_bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, tokens: Int[Array, "batch context"]) -> Float[Array, "batch embed"]:
        x = self.token_embedding(tokens)
        x = x + self.position_embedding[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        # The end-of-text token has the highest id, so argmax finds its first occurrence.
        end = jnp.argmax(tokens, axis=-1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return self.projection(self.final_norm(x))


class CLIP(nnx.Module):
    """Image and text encoders with a shared space; parity with OpenAI's code is tested to 1e-4.

    See :class:`~styleclip_jax.models.Generator` for float32 on accelerators.

    Args:
        config: The architecture.
        rngs: Rngs of the initial weights.
        dtype: Precision of the towers; parameters and returned features stay float32.

    Attributes:
        logit_scale: Logarithm of the trained factor from cosines to logits.
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.vision = VisionTower(config, rngs=rngs, dtype=dtype)
        self.text = TextTower(config, rngs=rngs, dtype=dtype)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))

    def encode_image(
        self, pixels: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch embed"]:
        """Embeds images.

        Args:
            pixels: Images of ``config.image_size`` pixels, normalized as in CLIP's training:
                ``losses.clip_pixels(images, config.image_size, "clip")``.

        Returns:
            Features, not of unit length.

        Raises:
            InputError: The images have another size or layout.
        """
        size = self.config.image_size
        if pixels.shape[1:] != (size, size, 3):
            raise InputError(
                f"pixels have shape {pixels.shape}, expected (batch, {size}, {size}, 3)"
            )
        return self.vision(pixels).astype(jnp.float32)

    def encode_text(
        self, tokens: Int[Array | np.ndarray, "batch context"]
    ) -> Float[Array, "batch embed"]:
        """Embeds texts.

        Args:
            tokens: Token ids with start and end tokens, padded to ``config.context_length``.

        Returns:
            Features, not of unit length.
        """
        return self.text(jnp.asarray(tokens)).astype(jnp.float32)
