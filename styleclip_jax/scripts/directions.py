r"""Edits images with any text at once, by a direction in StyleSpace.

Needs no training for a text: what the generator's style channels do was measured once, by
make_directions.py. Results go to a new directory: a sheet of all images before and after, every
image, the latents and metrics.json.

Examples:
  python directions.py --description="a person with sunglasses" --num_images=8
  python directions.py --description="a person with purple hair" --strength=-4 --strength=4 \
      --threshold=0.15
  python directions.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 \
      --directions=checkpoints/ffhq-directions --neutral="a face" \
      --description="a face with purple hair" --latents=faces.npy
  python directions.py --generator=checkpoints/cars --clip=checkpoints/vit-b-32 --method=stylemc \
      --description="a sports car" --neutral="a car"
"""

import math
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from absl import flags

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_clip, load_directions, load_generator
from styleclip_jax.io.latents import load_latents
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.latents import sample_latents
from styleclip_jax.methods.directions import (
    AVATARS_DIRECTIONS,
    DirectionDefaults,
    automatic_threshold,
    check_fingerprints,
    edit_with_direction,
    text_direction,
)
from styleclip_jax.methods.optimization import AVATARS_NEUTRAL
from styleclip_jax.methods.relevance import with_scales
from styleclip_jax.runs import command_line
from styleclip_jax.runs.objective_flags import NEUTRAL
from styleclip_jax.runs.results import run_directory, write_metrics
from styleclip_jax.runs.strip import SHEET, SHEET_ROWS, first_batch, write_strip

FLAGS = flags.FLAGS
DEFAULTS = DirectionDefaults()

# What differs for the small generator that comes with the package; flags that are given prevail.
AVATARS: dict[str, Any] = {
    "strength": [AVATARS_DIRECTIONS.strength],
    "threshold": AVATARS_DIRECTIONS.threshold,
    "neutral": AVATARS_NEUTRAL,
}

flags.DEFINE_multi_string(
    "description",
    None,
    "What the images should show, such as 'a person with sunglasses'. Repeat the flag to add up the"
    " changes of several texts.",
    required=True,
)
flags.DEFINE_string("neutral", NEUTRAL, "What all images show, before and after.")
flags.DEFINE_multi_float(
    "strength",
    [DEFAULTS.strength],
    "How much to edit, from -10 to 10; negative values edit the other way round. Repeat the flag"
    " for a strip of images from the lowest to the highest.",
)
flags.register_validator(
    "strength",
    lambda strengths: all(map(math.isfinite, strengths)),
    message="--strength must be a finite number.",
)
flags.DEFINE_float(
    "threshold",
    None,
    "How much a style channel has to do with the text to be changed, usually 0.08 to 0.3: larger"
    " values change less else in the image. Default: by --min_channels.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "min_channels",
    DEFAULTS.min_channels,
    "Without --threshold: the largest threshold of 0.10 to 0.29 that keeps more channels than this."
    " 20 suits faces, 100 other images.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "templates",
    None,
    f"Average the features of every text over {len(IMAGENET_TEMPLATES)} sentences such as 'a photo"
    " of a ...'. Default: for every CLIP but the one that comes with the package.",
)
flags.DEFINE_string("results_dir", "results", "Where to write; if taken, a numbered one beside it.")

flags.DEFINE_string(
    "generator",
    None,
    "Checkpoint directory of a StyleGAN2, see python -m ckpt_convert. Default: the avatars that"
    f" come with the package, with {command_line.describe_flags(AVATARS)}.",
)
flags.DEFINE_string(
    "clip",
    None,
    "Checkpoint directory of a CLIP. Default: one that knows avatars and nothing else.",
)
flags.DEFINE_string(
    "directions",
    None,
    "What the generator's style channels do in the eyes of the CLIP: a directory that"
    " make_directions.py or python -m ckpt_convert directions wrote. Default: the avatars'.",
)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Arithmetic of the networks; bfloat16 suits GPUs."
)

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
    """Applies the texts with every strength to all images, and writes the results."""
    check_flags()
    generator = load_generator(FLAGS.generator, FLAGS.dtype)
    clip, tokenizer = load_clip(FLAGS.clip, FLAGS.dtype), load_tokenizer(FLAGS.clip)
    directions = load_directions(FLAGS.directions)
    check_fingerprints(directions, generator, clip)
    if directions.scales is None:
        print("note: measuring the channels' scales, which these directions lack", file=sys.stderr)
        directions = with_scales(directions, generator)
    templates = IMAGENET_TEMPLATES if use_templates() else ()
    dt = jnp.stack(
        [
            text_direction(clip, tokenizer, text, FLAGS.neutral, templates)
            for text in FLAGS.description
        ]
    )
    threshold = FLAGS.threshold
    if threshold is None:
        threshold = float(automatic_threshold(directions, dt, FLAGS.min_channels))
    if FLAGS.latents:
        latents = load_latents(FLAGS.latents, generator)
    else:
        latents = sample_latents(generator, FLAGS.num_images, FLAGS.seed, FLAGS.truncation)

    def edit(latents: Any, strength: float) -> Any:
        return edit_with_direction(generator, directions, latents, dt, strength, threshold)

    begun = time.perf_counter()
    changed = int(edit(first_batch(latents), 0.0).changed)
    compile_seconds = time.perf_counter() - begun
    channels = directions.config.channels
    print(f"{changed} of {channels} channels change (--threshold={threshold:.2f})")
    with run_directory(FLAGS.results_dir) as directory:
        seconds = write_strip(directory, lambda *x: edit(*x)[:2], latents, FLAGS.strength)
        metrics = {
            "threshold": threshold,
            "channels": channels,
            "changed_channels": changed,
            "compile_seconds": compile_seconds,
            "seconds_per_image": seconds,
        }
        write_metrics(directory / "metrics.json", metrics, command_line.script_flags(__name__))
    count = len(jax.tree.leaves(latents)[0])
    if count > SHEET_ROWS:
        print(f"{SHEET} shows the first {SHEET_ROWS} of {count} images")
    milliseconds = 1000 * statistics.median(seconds.values())
    print(f"wrote {directory / SHEET}, {milliseconds:.0f} ms per image")


def check_flags() -> None:
    """Sets the avatars' defaults; raises InputError where flags contradict each other."""
    command_line.refuse_random_images("latents", "num_images", "seed", "truncation")
    if FLAGS["min_channels"].present and FLAGS.threshold is not None:
        raise InputError("--min_channels has no effect with --threshold; leave one of them out")
    if not FLAGS.directions and (FLAGS.generator or FLAGS.clip):
        raise InputError(
            "the directions that come with the package are for its generator and CLIP; give"
            " --directions too, which make_directions.py writes"
        )
    if not FLAGS.generator:
        for name, value in AVATARS.items():
            if name != "threshold" or not FLAGS["min_channels"].present:
                FLAGS.set_default(name, value)


def use_templates() -> bool:
    """Whether texts are averaged over templates."""
    return bool(FLAGS.clip) if FLAGS.templates is None else FLAGS.templates


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-directions``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
