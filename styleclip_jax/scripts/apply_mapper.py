r"""Edits images with a mapper that train_mapper.py trained, in one pass.

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
import time
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from styleclip_jax.io.checkpoints import load_generator, load_mapper
from styleclip_jax.io.latents import load_latents
from styleclip_jax.latents import sample_latents
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.runs import command_line, photos
from styleclip_jax.runs.results import run_directory, write_metrics
from styleclip_jax.runs.strip import first_batch, print_strip, write_strip

FLAGS = flags.FLAGS

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

photos.define_flags()
photos.define_edit_flags()
flags.DEFINE_string(
    "latents", None, "Latents of the images to edit, .npy or .npz. Default: random images."
)
flags.DEFINE_integer("num_images", 4, "How many random images to edit.", lower_bound=1)
flags.DEFINE_integer(
    "seed",
    0,
    "Another seed gives other random images.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
flags.DEFINE_float(
    "truncation",
    0.7,
    "Variety of the random images: 1 is the full variety, smaller values give more typical images.",
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
        program = apply_mapper.lower(generator, mappers, first_batch(latents), 0.0).compile()
        edit = functools.partial(program, generator, mappers)
        metrics["compile_seconds"] = time.perf_counter() - begun

        columns = {"original": given.originals, "aligned": given.aligned} if given else {}
        metrics["strengths"] = write_strip(directory, edit, latents, FLAGS.strength, columns)
        if given and FLAGS.paste_back:
            for strength in FLAGS.strength:
                place = directory / f"strength_{strength}"
                photos.paste_faces(place / "photos", given.faces, place, directory / "before")
        write_metrics(directory / "metrics.json", metrics, command_line.script_flags(__name__))
    print_strip(directory, latents, metrics["strengths"])
    photos.exit_if_some_failed(given)


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-apply-mapper``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
