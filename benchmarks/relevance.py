"""Counts the operations for the directions of FFHQ and estimates the time on an accelerator.

Nothing is computed: XLA counts the floating-point operations of one synthesis with CLIP and of one
product with the Jacobian. The estimate is the time of the same number of operations in large matrix
products, times the ratio that benchmarks/speed.py measures for such programs
(ratio_to_matrix_product).

Examples:
  python benchmarks/relevance.py
  python benchmarks/relevance.py --matrix_tflops=400 --ratio=2
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from styleclip_jax.losses import clip_pixels
from styleclip_jax.models import CLIP, CLIPConfig, Generator, GeneratorConfig
from styleclip_jax.models.directions import channel_widths

FLAGS = flags.FLAGS
flags.DEFINE_float(
    "matrix_tflops",
    400.0,
    "TFLOP/s of large matrix products; an H100 reaches about 400 of its 495 in TF32.",
)
flags.DEFINE_float("ratio", 4.0, "Time of the program relative to such a product.")
flags.DEFINE_integer("images", 100, "Number of images to average over.")
flags.DEFINE_integer("guide_resolution", 256, "Resolution of the images for the Jacobian.")


def features(models: tuple[Generator, CLIP], styles: tuple, resolution: int) -> jax.Array:
    """CLIP's unit features of images."""
    generator, clip = models
    images = generator.synthesize(styles, resolution)
    x = clip.encode_image(clip_pixels(images, clip.config.image_size, "bicubic"))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def product(models: tuple[Generator, CLIP], styles: tuple, cotangent: jax.Array) -> tuple:
    """One product with the Jacobian, and the features."""
    see = functools.partial(features, models, resolution=FLAGS.guide_resolution)
    seen, pullback = jax.vjp(see, styles)
    return seen, pullback(cotangent)


def tflop(function, *arguments) -> float:
    """Operations of a program, in 10^12, as XLA counts them before it optimizes."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    assert analysis is not None, "XLA does not count operations on this platform"
    return analysis["flops"] / 1e12


def main(_: Sequence[str]) -> None:
    """Prints an estimate for each method."""
    config, clip_config = GeneratorConfig(), CLIPConfig.vit_b32()
    models = nnx.eval_shape(
        lambda: (Generator(config, rngs=nnx.Rngs(0)), CLIP(clip_config, rngs=nnx.Rngs(1)))
    )
    styles = tuple(jax.ShapeDtypeStruct((1, n), jnp.float32) for n in config.style_dims)
    cotangent = jax.ShapeDtypeStruct((1, clip_config.embed_dim), jnp.float32)
    forward = tflop(functools.partial(features, resolution=config.resolution), models, styles)
    guide = tflop(functools.partial(features, resolution=FLAGS.guide_resolution), models, styles)
    pullback = tflop(product, models, styles, cotangent) - guide
    channels = sum(channel_widths(config, "stylespace"))
    methods = {
        "differences": 2 * channels * forward,
        "jacobian": clip_config.embed_dim * pullback + guide,
    }
    print(f"one image: {1000 * forward:.0f} GFLOP at {config.resolution} px")
    print(f"one product: {1000 * pullback:.0f} GFLOP at {FLAGS.guide_resolution} px")
    for name, per_image in methods.items():
        work = FLAGS.images * per_image
        seconds = work / FLAGS.matrix_tflops * FLAGS.ratio
        print(f"{name}: {work / 1000:.1f} PFLOP, estimated {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    app.run(main)
