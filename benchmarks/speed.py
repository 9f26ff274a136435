"""Measures speed and memory with random weights, each measurement in a process of its own.

A time means little without the machine's speed, so each stands beside the time that the same number
of floating point operations takes in a large float32 matrix product in the same process.

Examples:
  python benchmarks/speed.py
  python benchmarks/speed.py --measure=forward_1024,step_1024_guide_256 --dtype=bfloat16
"""

import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from styleclip_jax.losses import clip_loss
from styleclip_jax.models.clip import CLIP, CLIPConfig
from styleclip_jax.models.stylegan2 import Generator, GeneratorConfig
from styleclip_jax.optimization import OptimizeConfig, edit_latents

FLAGS = flags.FLAGS
MEASUREMENTS = ("forward_256", "forward_1024", "step_256", "step_1024", "step_1024_guide_256")
flags.DEFINE_list("measure", list(MEASUREMENTS), "What to measure, of the default's names.")
flags.DEFINE_integer("repeats", 5, "Timed repetitions after one that is not timed.")
flags.DEFINE_integer("batch_size", 1, "Images at once.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Arithmetic of the networks.")

MATRIX_SIZE = 4096


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call, until its results are there; the first call is not counted."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def flops_of(function: Callable, *args) -> float:
    """Floating point operations of a compiled function, as XLA counts them."""
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    assert analysis is not None, "XLA does not count operations on this platform"
    return analysis["flops"]


def matrix_product_seconds(flops: float) -> float:
    """Time that as many operations take in products of large float32 matrices."""
    a, b = (jax.random.normal(jax.random.key(i), (MATRIX_SIZE, MATRIX_SIZE)) for i in range(2))
    product = jax.jit(jnp.matmul)
    return median_seconds(lambda: product(a, b), 3) * flops / (2 * MATRIX_SIZE**3)


def peak_memory_gb() -> float:
    """Most memory in use so far: the accelerator's, or on a CPU the process's."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"] / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def forward(resolution: int) -> tuple[float, float]:
    """Seconds and operations of drawing images."""
    generator, latents = random_generator(resolution)
    draw = jax.jit(lambda generator, latents: generator(latents))
    seconds = median_seconds(lambda: draw(generator, latents), FLAGS.repeats)
    return seconds, flops_of(lambda generator, latents: generator(latents), generator, latents)


def step(resolution: int, guide_resolution: int | None) -> tuple[float, float]:
    """Seconds and operations of one step of latent optimization with CLIP ViT-B/32."""
    generator, latents = random_generator(resolution)
    clip = CLIP(CLIPConfig.vit_b32(), rngs=nnx.Rngs(1), dtype=jnp.dtype(FLAGS.dtype))
    text_features = jax.random.normal(jax.random.key(2), (1, clip.config.embed_dim))
    # An accelerator is asked rarely, as in a real run.
    every = 1 if jax.default_backend() == "cpu" else 20
    config = OptimizeConfig(steps=(1 + FLAGS.repeats) * every, guide_resolution=guide_resolution)
    times = []
    edit_latents(
        generator,
        clip,
        latents,
        text_features,
        config,
        on_progress=lambda *_: times.append(time.perf_counter()),
        progress_every=every,
    )
    seconds = statistics.median((b - a) / every for a, b in itertools.pairwise(times))

    def loss(latents, generator, clip):
        return clip_loss(clip, generator(latents, guide_resolution), text_features).sum()

    return seconds, flops_of(jax.grad(loss), latents, generator, clip)


def random_generator(resolution: int) -> tuple[Generator, jax.Array]:
    """An official-size generator with random weights, and latents for it."""
    config = GeneratorConfig(resolution=resolution)
    generator = Generator(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(FLAGS.dtype))
    z = jax.random.normal(jax.random.key(0), (FLAGS.batch_size, config.z_dim))
    return generator, jax.jit(Generator.map)(generator, z)


def measure(name: str) -> dict:
    """Runs one measurement, for example ``step_1024_guide_256``."""
    kind, resolution, *guide = name.replace("guide_", "").split("_")
    if kind == "forward":
        seconds, flops = forward(int(resolution))
    else:
        seconds, flops = step(int(resolution), int(guide[0]) if guide else None)
    memory = peak_memory_gb()
    product_seconds = matrix_product_seconds(flops)
    return {
        "name": name,
        "seconds": seconds,
        "gflop": flops / 1e9,
        "ratio_to_matrix_product": seconds / product_seconds,
        "peak_memory_gb": memory,
        "batch_size": FLAGS.batch_size,
        "dtype": FLAGS.dtype,
        "device": jax.devices()[0].device_kind,
    }


def main(argv: Sequence[str]) -> None:
    """Runs one measurement here, or several in processes of their own."""
    if len(FLAGS.measure) == 1:
        print(json.dumps(measure(FLAGS.measure[0])), flush=True)
        return
    settings = [f"--{f}={FLAGS[f].value}" for f in ("repeats", "batch_size", "dtype")]
    for name in FLAGS.measure:
        subprocess.run([sys.executable, argv[0], f"--measure={name}", *settings], check=True)


if __name__ == "__main__":
    app.run(main)
