r"""Edits images with a trained mapper, in one forward pass.

Results go to a new directory: a sheet of all images before and after, every image, the latents and
metrics.json.

Examples:
  python apply_mapper.py --mapper=sunglasses
  python apply_mapper.py --mapper=sunglasses --image=avatar.png
  python apply_mapper.py --mapper=runs/beard --num_images=8 --strength=0.1
  python apply_mapper.py --mapper=runs/beard --strength=-0.1 --strength=0.05 --strength=0.1
  python apply_mapper.py --generator=checkpoints/ffhq --mapper=checkpoints/afro \
      --mapper=checkpoints/surprised --latents=faces.npy
"""

import functools
import math
import operator
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int

from styleclip_jax.io.checkpoints import load_generator, load_mapper
from styleclip_jax.io.images import sheet, write_image
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.latents import Latents, sample_latents
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.runs import command_line, photos
from styleclip_jax.runs.results import run_directory, write_images, write_metrics

FLAGS = flags.FLAGS

BATCH_SIZE = 8
SHEET_ROWS = 16

flags.DEFINE_multi_string(
    "mapper",
    None,
    "The mapper: a directory written by train_mapper.py or python -m ckpt_convert mapper, or the"
    " name of a mapper that ships with the package. Repeat the flag to apply several at once.",
    required=True,
)
flags.DEFINE_multi_float(
    "strength",
    [0.1],
    "Strength of the edit. Negative values edit in the opposite direction. Repeat the flag for a"
    " strip of images from the lowest to the highest value.",
)
flags.register_validator(
    "strength",
    lambda strengths: all(map(math.isfinite, strengths)),
    message="--strength must be a finite number.",
)
flags.DEFINE_string(
    "results_dir",
    "results",
    "New directory for the results. If it exists, results-2, results-3 and so on is used.",
)

flags.DEFINE_string(
    "generator",
    None,
    "StyleGAN2 that synthesizes the images: a directory written by python -m ckpt_convert"
    " stylegan2. Default: the avatars that ship with the package.",
)
flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16"],
    "Precision of the networks: bfloat16 is faster on GPUs and TPUs, float32 is more exact.",
)

photos.define_flags()
photos.define_edit_flags()
flags.DEFINE_string(
    "latents", None, "Latents of the images to edit, .npy or .npz. Default: random images."
)
flags.DEFINE_integer("num_images", 4, "Number of random images to edit.", lower_bound=1)
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the random images.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
flags.DEFINE_float(
    "truncation",
    0.7,
    "Variety of the random images: 1 is the full variety, lower values give more typical images.",
    lower_bound=0,
)


def main(_: Sequence[str]) -> None:
    """Applies the mappers with every strength to all images, and writes the results."""
    photos.check_flags()
    for name in ("image", "inversion", "latents"):
        command_line.refuse_random_images(name, "num_images", "seed", "truncation")
    mappers = [load_mapper(path) for path in FLAGS.mapper]
    generator = load_generator(photos.generator_path(), FLAGS.dtype)
    with run_directory(FLAGS.results_dir) as directory:
        given, latents, metrics = photos.photos_to_edit(generator, directory)
        if latents is None and FLAGS.latents:
            latents = load_latents(FLAGS.latents, generator)
        elif latents is None:
            latents = sample_latents(generator, FLAGS.num_images, FLAGS.seed, FLAGS.truncation)

        begun = time.perf_counter()
        size = len(jax.tree.leaves(latents)[0])
        batches = batch_indices(size)
        first = jax.tree.map(operator.itemgetter(batches[0]), latents)
        program = apply_mapper.lower(generator, mappers, first, 0.0).compile()
        edit = functools.partial(program, generator, mappers)
        metrics |= {"compile_seconds": time.perf_counter() - begun, "strengths": {}}

        columns = {}
        if given:
            rows = slice(SHEET_ROWS)
            columns = {"original": given.originals[rows], "aligned": given.aligned[rows]}
        # Strength 0 is the image before.
        for strength in sorted({0.0, *FLAGS.strength}):
            label = f"strength {strength}" if strength else "before"
            place = directory / label.replace(" ", "_")
            columns[label], seconds = apply(edit, latents, batches, strength, place)
            metrics["strengths"][label] = {"seconds_per_image": seconds}
        if given and FLAGS.paste_back:
            for strength in FLAGS.strength:
                place = directory / f"strength_{strength}"
                photos.paste_faces(place / "photos", given.faces, place, directory / "before")
        write_image(directory / "before_after.png", sheet([*columns.values()], [*columns]))
        write_metrics(directory / "metrics.json", metrics, command_line.script_flags(__name__))
    if size > SHEET_ROWS:
        print(f"before_after.png shows the first {SHEET_ROWS} of {size} images")
    milliseconds = 1000 * statistics.median(
        measured["seconds_per_image"] for measured in metrics["strengths"].values()
    )
    print(f"wrote {directory / 'before_after.png'}, {milliseconds:.0f} ms per image")
    photos.exit_if_some_failed(given)


def batch_indices(size: int) -> np.ndarray:
    """Indices of the latents in every batch, all of one size, so that one program serves all.

    The last latent is repeated to fill the last batch.
    """
    batch = min(size, BATCH_SIZE)
    return np.minimum(np.arange(-(-size // batch) * batch), size - 1).reshape(-1, batch)


def apply(
    edit: Callable,
    latents: Latents,
    batches: Int[np.ndarray, "batches batch"],
    strength: float,
    directory: Path,
) -> tuple[Float[np.ndarray, "rows height width 3"], float]:
    """Edits all images and writes them and their latents, batch by batch.

    Returns:
        The first images, for the sheet, and the seconds per image.
    """
    size = len(jax.tree.leaves(latents)[0])
    rows, parts, seconds = [], [], 0.0
    for indices in batches:
        batch = jax.tree.map(operator.itemgetter(indices), latents)
        begun = time.perf_counter()
        images, edited = jax.block_until_ready(edit(batch, strength))
        seconds += time.perf_counter() - begun
        new = min(len(indices), size - indices[0])
        # Keeps at most one batch of images on the device.
        images = np.asarray(images)[:new]
        if not np.isfinite(images).all():
            raise FloatingPointError(f"images are not finite with --strength={strength}")
        write_images(directory, images, first=int(indices[0]))
        rows += [*images[: max(SHEET_ROWS - len(rows), 0)]]
        parts.append(jax.tree.map(operator.itemgetter(slice(new)), edited))
    save_latents(directory / "latents", jax.tree.map(lambda *x: jnp.concatenate(x), *parts))
    return np.stack(rows), seconds / batches.size


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-apply-mapper``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
