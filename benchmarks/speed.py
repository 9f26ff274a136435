"""Measures speed and memory with random weights, each measurement in its own process.

Each time is compared with that of a large float32 matrix product with the same number of
floating-point operations, in the same process, because times depend on the machine. The number of
operations is XLA's and includes the multiplications by zero in the four phases of an up-convolution
(7 in 16).

forward_R             synthesis of images from W+ latents, R pixels high and wide
step_R                a step of latent optimization, with CLIP ViT-B/32
step_R_guide_S        the same, with guide_resolution=S
mapper_step_R         a step of a LevelsMapper's training: Ranger, CLIP ViT-B/32, identity loss
mapper_apply_R        an edit with a mapper
..._batch_B           the same with B images at once, whatever --batch_size says
encode_R              latents of images by an e4e encoder, which sees 256 pixels
refine_step_R         a step that refines an inversion: pixels and LPIPS
tune_step_R           a step of pivotal tuning: pixels and LPIPS
directions_R          an edit along the direction of a text; the text is encoded before
text_direction        the direction of a text: two texts of one sentence by ViT-B/32's text tower

Examples:
  python benchmarks/speed.py
  python benchmarks/speed.py --measure=forward_1024,step_1024_guide_256 --dtype=bfloat16
  python benchmarks/speed.py --measure=step_256_batch_1,step_256_batch_4,step_256_batch_16
"""

import functools
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from styleclip_jax.losses import clip_loss, perceptual_distance, perceptual_features
from styleclip_jax.methods.directions import edit_with_direction
from styleclip_jax.methods.inversion import InvertConfig, invert
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.mapper_training import (
    MapperTrainConfig,
    init_mapper_state,
    make_mapper_train_step,
)
from styleclip_jax.methods.optimization import OptimizeConfig, edit_latents
from styleclip_jax.methods.relevance import build_directions, unit_rows
from styleclip_jax.methods.tuning import TuneConfig, tune_generator
from styleclip_jax.models.arcface import ArcFace, ArcFaceConfig
from styleclip_jax.models.clip import CLIP, CLIPConfig
from styleclip_jax.models.directions import Directions, DirectionsConfig, channel_widths
from styleclip_jax.models.e4e import E4E, E4EConfig
from styleclip_jax.models.lpips import LPIPS, LPIPSConfig
from styleclip_jax.models.mapper import LevelsMapper, MapperConfig
from styleclip_jax.models.stylegan2 import Generator, GeneratorConfig
from styleclip_jax.sharding import replicate, spread

FLAGS = flags.FLAGS
BATCH_SIZES = (1, 2, 4, 8, 16)
MEASUREMENTS = (
    "forward_256",
    "forward_1024",
    "step_256",
    "step_1024",
    "step_1024_guide_256",
    "mapper_step_256",
    "mapper_step_1024",
    "mapper_apply_256",
    "mapper_apply_1024",
    *(f"{kind}_256_batch_{n}" for kind in ("step", "mapper_apply") for n in BATCH_SIZES),
    "encode_1024",
    "refine_step_256",
    "refine_step_1024",
    "tune_step_256",
    "tune_step_1024",
    "directions_256",
    "directions_1024",
    "text_direction",
)
flags.DEFINE_list(
    "measure", list(MEASUREMENTS), "Measurements to take; other resolutions work too."
)
flags.DEFINE_integer("repeats", 5, "Timed repetitions after one that is not timed.")
flags.DEFINE_integer("batch_size", 1, "Images at once, except in mapper training.")
flags.DEFINE_integer("mapper_batch", 2, "Images at once in mapper training.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Precision of the networks.")

MATRIX_SIZE = 4096


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call until its results are ready; the first call does not count."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def matrix_product_seconds(flops: float) -> float:
    """Time of the same number of operations in products of large float32 matrices."""
    a, b = (jax.random.normal(jax.random.key(i), (MATRIX_SIZE, MATRIX_SIZE)) for i in range(2))
    product = jax.jit(jnp.matmul)
    return median_seconds(lambda: product(a, b), 3) * flops / (2 * MATRIX_SIZE**3)


def peak_memory_gb() -> float:
    """Peak memory so far: of the accelerator, or on a CPU of the process."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"] / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Measured(NamedTuple):
    """A time and the program that was timed.

    Attributes:
        seconds: Median time.
        program: The program before XLA optimizes it, to count its operations.
    """

    seconds: float
    program: jax.stages.Lowered


def forward(resolution: int) -> Measured:
    """Synthesizes images."""
    generator, latents = random_generator(resolution, FLAGS.batch_size)
    synthesize = jax.jit(lambda generator, latents: generator(latents))
    seconds = median_seconds(lambda: synthesize(generator, latents), FLAGS.repeats)
    return Measured(seconds, synthesize.lower(generator, latents))


def step(resolution: int, guide_resolution: int | None) -> Measured:
    """Takes one step of latent optimization with CLIP ViT-B/32."""
    generator, latents = random_generator(resolution, FLAGS.batch_size)
    clip, text_features = random_clip()
    generator, clip, latents = replicate(generator), replicate(clip), spread(latents)
    every = steps_between_reports()
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

    return Measured(seconds, jax.jit(jax.grad(loss)).lower(latents, generator, clip))


def mapper_step(resolution: int) -> Measured:
    """Takes one step of a mapper's training with the default settings, on all devices."""
    generator, latents = random_generator(resolution, FLAGS.mapper_batch)
    clip, text_features = random_clip()
    arcface = ArcFace(ArcFaceConfig(), rngs=nnx.Rngs(3), dtype=jnp.dtype(FLAGS.dtype))
    networks = replicate((generator, clip, arcface))
    config = MapperTrainConfig()

    def make_step(generator, clip, arcface):
        return make_mapper_train_step(generator, clip, text_features, config, arcface)

    train_step = make_step(*networks)
    state = init_mapper_state(random_mapper(generator), config)
    # In host memory, as in training.
    latents = jax.device_get(latents)
    every = steps_between_reports()

    def run() -> object:
        nonlocal state
        for _ in range(every):
            state, metrics = train_step(state, latents)
        return metrics

    seconds = median_seconds(run, FLAGS.repeats) / every
    # The networks are arguments, because constants would be written into the program.
    whole = jax.jit(lambda networks, state, latents: make_step(*networks)(state, latents))
    return Measured(seconds, whole.lower(networks, state, latents))


def mapper_apply(resolution: int) -> Measured:
    """Edits images with a mapper."""
    generator, latents = random_generator(resolution, FLAGS.batch_size)
    networks = replicate((generator, random_mapper(generator)))
    arguments: Any = (*networks, spread(latents), 0.1)
    seconds = median_seconds(lambda: apply_mapper(*arguments), FLAGS.repeats)
    return Measured(seconds, jax.jit(apply_mapper).lower(*arguments))


def encode(resolution: int) -> Measured:
    """Encodes images as latents."""
    generator, _ = random_generator(resolution, 1)
    config = E4EConfig(num_layers=generator.num_layers)
    encoder = E4E(config, rngs=nnx.Rngs(5), dtype=jnp.dtype(FLAGS.dtype))
    images = jnp.zeros((FLAGS.batch_size, config.image_height, config.image_width, 3))
    run = jax.jit(E4E.__call__)
    seconds = median_seconds(lambda: run(encoder, images), FLAGS.repeats)
    return Measured(seconds, run.lower(encoder, images))


def refine_step(resolution: int) -> Measured:
    """Takes one refinement step of an inversion."""
    generator, latents = random_generator(resolution, FLAGS.batch_size)
    lpips = random_lpips()
    images = jnp.zeros((FLAGS.batch_size, resolution, resolution, 3))
    if jax.default_backend() == "cpu":
        times = []
        config = InvertConfig(steps=1 + FLAGS.repeats)
        note = lambda _: times.append(time.perf_counter())  # noqa: E731
        invert(generator, images, config=config, perceptual=lpips, on_progress=note)
        seconds = statistics.median(b - a for a, b in itertools.pairwise(times))
    else:
        # A whole run is one program, which does little else.
        config = InvertConfig(steps=200)
        run = functools.partial(invert, generator, images, config=config, perceptual=lpips)
        seconds = median_seconds(run, FLAGS.repeats) / config.steps

    gradient = jax.jit(jax.grad(reconstruction_loss))
    return Measured(seconds, gradient.lower(latents, generator, lpips, images))


def tune_step(resolution: int) -> Measured:
    """Takes one step of pivotal tuning."""
    generator, latents = random_generator(resolution, FLAGS.batch_size)
    lpips = random_lpips()
    images = jnp.zeros((FLAGS.batch_size, resolution, resolution, 3))
    times = []
    config = TuneConfig(steps=1 + FLAGS.repeats, stop_distance=0.0)
    note = lambda _: times.append(time.perf_counter())  # noqa: E731
    tune_generator(generator, latents, images, lpips, config, on_progress=note)
    seconds = statistics.median(b - a for a, b in itertools.pairwise(times))

    gradient = jax.jit(jax.grad(reconstruction_loss, argnums=1))
    return Measured(seconds, gradient.lower(latents, generator, lpips, images))


def reconstruction_loss(latents, generator, lpips, images) -> jax.Array:
    """The loss of an inversion."""
    found = generator(latents)
    features = (perceptual_features(lpips, x) for x in (found, images))
    return jnp.square(found - images).mean() + perceptual_distance(lpips, *features).sum()


def random_lpips() -> LPIPS:
    """An LPIPS with random weights."""
    return LPIPS(LPIPSConfig(), rngs=nnx.Rngs(6), dtype=jnp.dtype(FLAGS.dtype))


def directions(resolution: int) -> Measured:
    """Edits images, each time along another direction."""
    generator, latents = random_generator(resolution, FLAGS.batch_size)
    config = DirectionsConfig(channel_widths(generator.config, "stylespace"), 512)
    relevance = np.random.default_rng(0).normal(size=(config.channels, 512)).astype(np.float32)
    made = build_directions(config, unit_rows(relevance), np.ones(config.channels, np.float32))
    texts = iter(jax.random.normal(jax.random.key(5), (FLAGS.repeats + 1, 512)) / 512**0.5)

    def edit(generator: Generator, made: Directions, latents: jax.Array, text: jax.Array) -> Any:
        return edit_with_direction(generator, made, latents, text, 4.0, 0.05)

    seconds = median_seconds(lambda: edit(generator, made, latents, next(texts)), FLAGS.repeats)
    return Measured(seconds, jax.jit(edit).lower(generator, made, latents, jnp.ones(512)))


def text_direction() -> Measured:
    """Encodes two texts, without the tokenizer, which takes less than a millisecond."""
    clip, _ = random_clip()
    tokens = jnp.zeros((2, clip.config.context_length), jnp.int32).at[:, 5].set(49407)
    encode = jax.jit(CLIP.encode_text)
    seconds = median_seconds(lambda: encode(clip, tokens), FLAGS.repeats)
    return Measured(seconds, encode.lower(clip, tokens))


def steps_between_reports() -> int:
    """Number of steps between progress reports: few reports on an accelerator, as in a real run."""
    return 1 if jax.default_backend() == "cpu" else 20


def random_generator(resolution: int, batch_size: int) -> tuple[Generator, jax.Array]:
    """An official-size generator with random weights, and latents for it."""
    config = GeneratorConfig(resolution=resolution)
    generator = Generator(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(FLAGS.dtype))
    z = jax.random.normal(jax.random.key(0), (batch_size, config.z_dim))
    return generator, jax.jit(Generator.map)(generator, z)


def random_clip() -> tuple[CLIP, jax.Array]:
    """A ViT-B/32 with random weights, and the features of a text."""
    clip = CLIP(CLIPConfig.vit_b32(), rngs=nnx.Rngs(1), dtype=jnp.dtype(FLAGS.dtype))
    return clip, jax.random.normal(jax.random.key(2), (1, clip.config.embed_dim))


def random_mapper(generator: Generator) -> LevelsMapper:
    """A mapper with random weights for the latents of a generator."""
    shape = generator.config
    config = MapperConfig(w_dim=shape.w_dim, num_layers=shape.num_layers)
    return LevelsMapper(config, rngs=nnx.Rngs(4))


def measurement(name: str) -> Callable[[], Measured]:
    """Returns the measurement of a name such as ``step_1024_guide_256``."""
    if name == "text_direction":
        return text_direction
    guide = None
    if "_guide_" in name:
        name, guide = name.split("_guide_")
    kind, resolution = name.rsplit("_", 1)
    kinds: dict[str, Callable[[int], Measured]] = {
        "forward": forward,
        "step": functools.partial(step, guide_resolution=int(guide) if guide else None),
        "mapper_step": mapper_step,
        "mapper_apply": mapper_apply,
        "encode": encode,
        "refine_step": refine_step,
        "tune_step": tune_step,
        "directions": directions,
    }
    return functools.partial(kinds[kind], int(resolution))


def measure(name: str) -> dict[str, Any]:
    """Runs one measurement."""
    kind, _, batch_size = name.partition("_batch_")
    if batch_size:
        FLAGS.batch_size = FLAGS.mapper_batch = int(batch_size)
    images = FLAGS.mapper_batch if name.startswith("mapper_step") else FLAGS.batch_size
    seconds, program = measurement(kind)()
    memory = peak_memory_gb()
    analysis = program.cost_analysis()
    assert analysis is not None, "XLA does not count operations on this platform"
    product_seconds = matrix_product_seconds(analysis["flops"])
    return {
        "name": name,
        "seconds": seconds,
        "images_per_second": images / seconds,
        "gflop": analysis["flops"] / 1e9,
        "ratio_to_matrix_product": seconds / product_seconds,
        "peak_memory_gb": memory,
        "batch_size": images,
        "dtype": FLAGS.dtype,
        "device": jax.devices()[0].device_kind,
    }


def main(argv: Sequence[str]) -> None:
    """Runs one measurement in this process, or several in their own processes."""
    if len(FLAGS.measure) == 1:
        print(json.dumps(measure(FLAGS.measure[0])), flush=True)
        return
    settings = [
        f"--{f}={FLAGS[f].value}" for f in ("repeats", "batch_size", "mapper_batch", "dtype")
    ]
    for name in FLAGS.measure:
        subprocess.run([sys.executable, argv[0], f"--measure={name}", *settings], check=True)


if __name__ == "__main__":
    app.run(main)
