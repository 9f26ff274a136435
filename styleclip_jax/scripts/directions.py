r"""Edits images with any text in one forward pass, along a direction in StyleSpace.

Needs no training per text: make_directions.py measures the effect of the generator's style channels
once. Results go to a new directory: a sheet of the first images before and after, every
image, the latents and metrics.json. Images are edited in batches on all devices of this machine; on
several machines, run the same command on each of them. Results are written per batch. To resume an
interrupted run, run the same command with --resume.

Examples:
  python directions.py --description="a person with sunglasses" --num_images=8
  python directions.py --description="a person with purple hair" --strength=-4 --strength=4 \
      --threshold=0.15
  python directions.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 \
      --directions=checkpoints/ffhq-directions \
      --description="a face with purple hair" --image=me.jpg --paste_back
  python directions.py --generator=checkpoints/cars --clip=checkpoints/vit-b-32 --method=stylemc \
      --description="a sports car" --neutral="a car"
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, get_args

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from styleclip_jax.avatars import AVATARS_DIRECTIONS, AVATARS_NEUTRAL, AVATARS_STYLEMC_CONFIG
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_arcface, load_clip, load_directions, load_generator
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import Tokenizer, encode_texts, load_tokenizer
from styleclip_jax.latents import Latents, synthesize, to_styles
from styleclip_jax.methods.directions import (
    DirectionDefaults,
    automatic_threshold,
    best_strengths,
    channel_weights,
    check_fingerprints,
    move_latents,
    text_direction,
)
from styleclip_jax.methods.relevance import with_scales
from styleclip_jax.methods.stylemc import StyleMCConfig, apply_style_change, learn_style_change
from styleclip_jax.models import CLIP, Generator
from styleclip_jax.models.clip import Preprocess
from styleclip_jax.runs import (
    command_line,
    edits,
    image_flags,
    network_flags,
    photos,
    process_flags,
    settings,
    strengths,
)
from styleclip_jax.runs import processes as distributed
from styleclip_jax.runs.objective_flags import NEUTRAL, chosen_templates, note_unknown_words
from styleclip_jax.runs.strengths import Edited
from styleclip_jax.sharding import replicate

FLAGS = flags.FLAGS
STYLEMC: Any = StyleMCConfig()
DEFAULTS = DirectionDefaults()

# Defaults without --generator; flags on the command line prevail.
AVATARS: dict[str, Any] = {
    "threshold": AVATARS_DIRECTIONS.threshold,
    "neutral": AVATARS_NEUTRAL,
}
AVATARS_STYLEMC = command_line.differences(AVATARS_STYLEMC_CONFIG, STYLEMC)

flags.DEFINE_multi_string(
    "description",
    None,
    "What the images should show, such as 'a person with sunglasses'. Repeat the flag to add the"
    " changes of several texts. Required.",
    required=True,
)
flags.DEFINE_string(
    "neutral", NEUTRAL, "A text for what all images show before and after the edit."
)
flags.DEFINE_multi_float(
    "strength",
    None,
    "Strength of the edit, usually -10 to 10; negative values edit in the opposite direction."
    " Repeat the flag for a strip of images from the lowest to the highest. Default:"
    f" {DEFAULTS.strength}; for the avatars, their CLIP chooses the best strength for each image.",
)
flags.DEFINE_float(
    "threshold",
    None,
    "Minimum relevance to the text of the style channels that change, usually 0.08 to 0.3: larger"
    " values preserve more of the image. Default: chosen by --min_channels.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "min_channels",
    DEFAULTS.min_channels,
    "Without --threshold: use the largest threshold from 0.10 to 0.29 that keeps more than this"
    " number of channels. 20 suits faces, 100 suits other images.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "templates",
    None,
    f"Average the features of every text over {len(IMAGENET_TEMPLATES)} sentences such as 'a photo"
    " of a ...'. Default: for every CLIP except the one that ships with the package.",
)
flags.DEFINE_enum(
    "method",
    "relevance",
    ["relevance", "stylemc"],
    "relevance: use the channels' relevance from --directions. stylemc: learn the change for every"
    " text from random images, in minutes; needs no --directions, and --strength=1 applies the"
    " learned change.",
)
flags.DEFINE_integer(
    "steps", STYLEMC.steps, "With --method=stylemc: number of gradient steps.", lower_bound=1
)
flags.DEFINE_float(
    "learning_rate", STYLEMC.learning_rate, "With --method=stylemc: length of a step in StyleSpace."
)
flags.DEFINE_integer(
    "images_per_step",
    STYLEMC.images_per_step,
    "With --method=stylemc: random images per step.",
    lower_bound=1,
)
flags.DEFINE_float(
    "id_lambda",
    STYLEMC.id_lambda,
    "With --method=stylemc: weight of the identity loss; needs --arcface.",
)
flags.DEFINE_integer(
    "guide_resolution",
    STYLEMC.guide_resolution,
    "With --method=stylemc: resolution of the images that CLIP sees, at most the generator's.",
)
flags.DEFINE_enum(
    "preprocess",
    STYLEMC.preprocess,
    get_args(Preprocess),
    "With --method=stylemc: preprocessing for CLIP; see make_directions.py.",
)
network_flags.define_arcface("for --id_lambda")
edits.define_flags()

settings.define_flag()
network_flags.define_flags(command_line.describe_flags(AVATARS))
network_flags.define_clip("CLIP that encodes the texts")
flags.DEFINE_string(
    "directions",
    None,
    "The channels' relevance to the CLIP: a directory written by make_directions.py or python -m"
    " ckpt_convert directions. Default: the avatars' directions.",
)

image_flags.define_flags()


class Method(NamedTuple):
    """A compiled way to edit images.

    Attributes:
        edit: Edits a batch of images.
        described: Entries for metrics.json.
    """

    edit: strengths.Edit
    described: dict[str, Any]


def main(_: Sequence[str]) -> None:
    """Applies the texts with every strength to all images and writes the results."""
    process_flags.join()
    with distributed.together():
        check_flags()
    with edits.results_directory(command_line.script_flags(__name__)) as directory:
        places = strengths.places(directory, FLAGS.strength or [None])
        with distributed.together():
            generator = replicate(load_generator(FLAGS.generator, FLAGS.dtype))
            clip = replicate(load_clip(FLAGS.clip, FLAGS.dtype))
            make_method = learned_method if FLAGS.method == "stylemc" else relevance_method
            tokenizer = load_tokenizer(FLAGS.clip)
            texts = [*FLAGS.description, *([FLAGS.neutral] if FLAGS.neutral else ())]
            note_unknown_words(FLAGS.clip, tokenizer, texts)
            method = make_method(generator, clip, tokenizer, chosen_templates())
            given, inverted, inversion = photos.photos_to_edit(generator, directory)
            # In host memory, because there may be many.
            latents = jax.device_get(image_flags.read_latents(generator, inverted))
            size = len(jax.tree.leaves(latents)[0])
            batches = edits.make_batches(
                size, generator.config.resolution, alone=photos.has_tuned_generators()
            )
            with edits.enough_memory(batches):
                left = [*strengths.plan(places, batches)]
                begun = time.perf_counter()
                first = (left[0][1] if left else batches[0]).take(latents)
                jax.block_until_ready(method.edit(generator, first, 0.0))
                seconds = time.perf_counter() - begun
                for strength, batch in left:
                    own = photos.generator_of(int(batch.indices[0]), generator)
                    taken, place = batch.take(latents), places[strength]
                    strengths.apply(method.edit, own, taken, batch, strength, place)
        measured = []
        if jax.process_index() == 0:
            metrics = inversion | method.described | {"compile_seconds": seconds}
            values = command_line.script_flags(__name__)
            measured = strengths.summarize(directory, places, given, metrics, values)
            edits.print_results(directory, size)
    photos.exit_if_some_failed(given)
    edits.exit_if_some_failed(measured)


def relevance_method(
    generator: Generator, clip: CLIP, tokenizer: Tokenizer, templates: Sequence[str]
) -> Method:
    """Prepares the edit of ``--method=relevance``."""
    directions = load_directions(FLAGS.directions)
    check_fingerprints(directions, generator, clip)
    if directions.scales is None:
        command_line.note("the directions have no scales; measuring them")
        directions = with_scales(directions, generator)
    directions = replicate(directions)
    dt = jnp.stack(
        [
            text_direction(clip, tokenizer, text, FLAGS.neutral, templates)
            for text in FLAGS.description
        ]
    )
    threshold = FLAGS.threshold
    if threshold is None:
        threshold = float(automatic_threshold(directions, dt, FLAGS.min_channels))

    def edit(generator: Generator, latents: Latents, strength: strengths.Strength) -> Edited:
        used = strength
        if used is None:
            used = best_strengths(generator, directions, clip, latents, dt, threshold)
        moved, _ = move_latents(generator, directions, latents, dt, used, threshold)
        # These are the page's programs, so that it computes the same image, bit for bit.
        styles = jax.jit(to_styles)(generator, moved)
        return Edited(jax.jit(synthesize)(generator, styles), styles, used)

    channels = directions.config.channels
    changed = int(jnp.count_nonzero(channel_weights(directions, dt, threshold)))
    print(f"{changed} of {channels} channels change (--threshold={threshold:.2f})")
    described = {"threshold": threshold, "channels": channels, "changed_channels": changed}
    return Method(edit, described)


def learned_method(
    generator: Generator, clip: CLIP, tokenizer: Tokenizer, templates: Sequence[str]
) -> Method:
    """Learns the edit of ``--method=stylemc``."""
    config = command_line.config_from_flags(StyleMCConfig)
    arcface = replicate(load_arcface(FLAGS.arcface, FLAGS.dtype)) if FLAGS.arcface else None
    changes = []
    for text in FLAGS.description:
        features = encode_texts(clip, tokenizer, [text], templates)
        # No bar if standard error is a file (disable=None), and only one bar for all hosts.
        disable = None if jax.process_index() == 0 else True
        with tqdm(total=config.steps, desc=text, unit="step", disable=disable) as bar:

            def report(step: int, loss: float, bar: tqdm = bar) -> None:
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.3f}")

            changes.append(
                learn_style_change(generator, clip, features, config, arcface, on_step=report)
            )
    change = jax.tree.map(lambda *parts: sum(parts), *changes)

    def edit(generator: Generator, latents: Latents, strength: Any) -> Edited:
        images, moved = apply_style_change(generator, latents, change, strength)
        return Edited(images, moved, strength)

    return Method(edit, {})


def check_flags() -> None:
    """Sets the avatars' defaults; raises InputError if flags contradict each other."""
    image_flags.check_flags()
    if FLAGS["min_channels"].present and FLAGS.threshold is not None:
        raise InputError("--min_channels has no effect with --threshold; remove one of them")
    for_stylemc = (*(f.name for f in dataclasses.fields(STYLEMC) if f.name != "seed"), "arcface")
    unused = ("directions", "threshold", "min_channels")
    if FLAGS.method == "relevance":
        unused = for_stylemc
    if given := [f"--{name}" for name in unused if FLAGS[name].present]:
        raise InputError(f"{given[0]} has no effect with --method={FLAGS.method}; remove it")
    if FLAGS.arcface and not FLAGS.id_lambda:
        raise InputError("--arcface has no effect with --id_lambda=0; try --id_lambda=0.1")
    if FLAGS.method == "relevance" and not FLAGS.directions and (FLAGS.generator or FLAGS.clip):
        raise InputError(
            "the directions that ship with the package are for its generator and CLIP; give"
            " --directions, written by make_directions.py, or use --method=stylemc"
        )
    if FLAGS.method == "stylemc":
        FLAGS.set_default("strength", [1.0])
        for name, value in ({} if FLAGS.generator else AVATARS_STYLEMC).items():
            FLAGS.set_default(name, value)
        return
    if FLAGS.generator:
        FLAGS.set_default("strength", [DEFAULTS.strength])
    else:
        for name, value in AVATARS.items():
            if name != "threshold" or not FLAGS["min_channels"].present:
                FLAGS.set_default(name, value)


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-directions``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
