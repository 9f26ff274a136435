r"""Edits images with a mapper that train_mapper.py trained, in one pass.

Results go to a new directory: a sheet of all images before and after, every image, the latents and
metrics.json.

Examples:
  python apply_mapper.py --mapper=sunglasses
  python apply_mapper.py --mapper=runs/beard --num_images=8 --strength=0.1
  python apply_mapper.py --mapper=runs/beard --strength=-0.1 --strength=0.05 --strength=0.1
  python apply_mapper.py --generator=checkpoints/ffhq --mapper=checkpoints/afro \
      --mapper=checkpoints/surprised --latents=faces.npy
"""

import math
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from styleclip_jax import command_line
from styleclip_jax.checkpoints import load_generator, load_mapper
from styleclip_jax.images import sheet, write_image
from styleclip_jax.latents import Latents, load_latents, sample_latents
from styleclip_jax.mapper_training import apply_mapper
from styleclip_jax.models import Generator
from styleclip_jax.results import write_images, write_metrics

FLAGS = flags.FLAGS

BATCH_SIZE = 8
SHEET_ROWS = 16

flags.DEFINE_multi_string(
    "mapper",
    None,
    "The mapper: a directory of train_mapper.py or of python -m ckpt_convert mapper, or the name of"
    " one that comes with the package. Repeat the flag to apply several at once.",
    required=True,
)
flags.DEFINE_multi_float(
    "strength",
    [0.1],
    "How much to edit. Negative values edit the other way round. Repeat the flag for a strip of"
    " images from the lowest to the highest.",
)
flags.register_validator(
    "strength",
    lambda strengths: all(map(math.isfinite, strengths)),
    message="--strength must be a finite number.",
)
flags.DEFINE_string("results_dir", "results", "Where to write; if taken, a numbered one beside it.")

flags.DEFINE_string(
    "generator",
    None,
    "Checkpoint directory of a StyleGAN2, see python -m ckpt_convert. Default: the avatars that"
    " come with the package.",
)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Arithmetic of the networks; bfloat16 suits GPUs."
)

flags.DEFINE_string(
    "latents", None, "Latents of the images to edit, .npy or .npz. Default: random images."
)
flags.DEFINE_integer("num_images", 4, "How many random images to edit.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Another seed gives other random images.")
flags.DEFINE_float(
    "truncation",
    0.7,
    "Variety of the random images: 1 is the full variety, smaller values give more typical images.",
    lower_bound=0,
)


def main(_: Sequence[str]) -> None:
    """Applies the mappers with every strength to all images, and writes the results."""
    mappers = [load_mapper(path) for path in FLAGS.mapper]
    generator = load_generator(FLAGS.generator, FLAGS.dtype)
    if FLAGS.latents:
        latents = load_latents(FLAGS.latents, generator)
    else:
        latents = sample_latents(generator, FLAGS.num_images, FLAGS.seed, FLAGS.truncation)

    begun = time.perf_counter()
    batches = batch_indices(len(jax.tree.leaves(latents)[0]))
    first = jax.tree.map(operator.itemgetter(batches[0]), latents)
    edit = apply_mapper.lower(generator, mappers, first, 0.0).compile()
    metrics: dict[str, Any] = {"compile_seconds": time.perf_counter() - begun, "strengths": {}}

    with command_line.run_directory(FLAGS.results_dir) as directory:
        columns = {}
        # Strength 0 is the image before.
        for strength in sorted({0.0, *FLAGS.strength}):
            label = f"strength {strength:g}" if strength else "before"
            place = directory / label.replace(" ", "_")
            images, edited, seconds = apply(edit, generator, mappers, latents, batches, strength)
            write_images(place, images, edited if strength else latents)
            columns[label] = images[:SHEET_ROWS]
            metrics["strengths"][label] = {"seconds_per_image": seconds / len(images)}
        write_image(directory / "before_after.png", sheet([*columns.values()], [*columns]))
        write_metrics(directory / "metrics.json", metrics)
    milliseconds = 1000 * metrics["strengths"][label]["seconds_per_image"]
    print(f"wrote {directory / 'before_after.png'}, {milliseconds:.0f} ms per image")


def batch_indices(size: int) -> np.ndarray:
    """Which latents make the batches, all of one size, so that one program does for all of them.

    The last latent fills what is left of the last batch.
    """
    batch = min(size, BATCH_SIZE)
    return np.minimum(np.arange(-(-size // batch) * batch), size - 1).reshape(-1, batch)


def apply(
    edit: Callable,
    generator: Generator,
    mappers: list,
    latents: Latents,
    batches: Any,
    strength: float,
) -> tuple[np.ndarray, Any, float]:
    """Edits all images; returns them, their latents, and the seconds it took."""
    results, seconds = [], 0.0
    for indices in batches:
        batch = jax.tree.map(operator.itemgetter(indices), latents)
        begun = time.perf_counter()
        results.append(jax.block_until_ready(edit(generator, mappers, batch, strength)))
        seconds += time.perf_counter() - begun
    size = len(jax.tree.leaves(latents)[0])
    images, edited = jax.tree.map(lambda *parts: jnp.concatenate(parts)[:size], *results)
    return np.asarray(images), edited, seconds


if __name__ == "__main__":
    command_line.run(main)
