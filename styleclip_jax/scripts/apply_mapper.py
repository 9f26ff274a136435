r"""Edits images with a trained mapper, in one forward pass.

A mapper is trained for one text, or for any text (DeltaMapper); the latter needs --description.

Results go to a new directory: a sheet of the first images before and after, every image, the
latents and metrics.json. Images are edited in batches on all devices of this machine; on several
machines, run the same command on each of them. Results are written per batch. To resume an
interrupted run, run the same command with --resume.

Examples:
  python apply_mapper.py --mapper=sunglasses
  python apply_mapper.py --mapper=sunglasses --image=avatar.png
  python apply_mapper.py --mapper=runs/beard --num_images=8 --strength=0.1
  python apply_mapper.py --mapper=runs/beard --strength=-0.1 --strength=0.05 --strength=0.1
  python apply_mapper.py --generator=checkpoints/ffhq --mapper=checkpoints/afro \
      --mapper=checkpoints/surprised --latents=faces.npy
  python apply_mapper.py --mapper=any_text --description="a person with blue hair"
  python apply_mapper.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 \
      --mapper=checkpoints/deltaedit --description="a face with a smile" --neutral="a face" \
      --directions=checkpoints/ffhq-directions
"""

import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
from absl import flags

from styleclip_jax.avatars import AVATARS_NEUTRAL
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import (
    load_clip,
    load_directions,
    load_generator,
    load_mapper,
)
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.latents import Latents, synthesize, to_styles
from styleclip_jax.methods.delta_editing import (
    THRESHOLD,
    best_strengths_of_change,
    move_styles,
    predict_change,
)
from styleclip_jax.methods.directions import check_fingerprints, text_direction
from styleclip_jax.methods.mapper_editing import edit_with_mappers, foreign_generator
from styleclip_jax.models import DeltaMapper, Generator
from styleclip_jax.models.mapper import Mapper
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

flags.DEFINE_multi_string(
    "mapper",
    None,
    "The mapper: a directory written by train_mapper.py or python -m ckpt_convert mapper, or the"
    " name of a mapper that ships with the package. Required; repeat the flag to apply several at"
    " once.",
    required=True,
)
flags.DEFINE_string("description", None, "With a mapper for any text: what the images should show.")
flags.DEFINE_string(
    "neutral",
    None,
    "With --description: a text for what all images show before and after the edit. Default:"
    f" {NEUTRAL!r}, for the avatars {AVATARS_NEUTRAL!r}.",
)
network_flags.define_clip("With --description, the CLIP that the mapper was trained with")
flags.DEFINE_bool(
    "templates",
    None,
    f"With --description: average the features of texts over {len(IMAGENET_TEMPLATES)} sentences"
    " such as 'a photo of a ...'. Default: for every CLIP except the one that ships with the"
    " package.",
)
flags.DEFINE_string(
    "directions",
    None,
    "With --description: change only style channels that are relevant to the text, according to"
    " this directory, written by make_directions.py or python -m ckpt_convert directions.",
)
flags.DEFINE_float(
    "threshold",
    THRESHOLD,
    "With --directions: minimum relevance to the text of the style channels that change.",
    lower_bound=0,
)
flags.DEFINE_float(
    "min_change",
    0.0,
    "With --description: least change of a style channel, before --strength multiplies it, for it"
    " to change; larger values preserve more of the image.",
    lower_bound=0,
)
flags.DEFINE_multi_float(
    "strength",
    None,
    "Strength of the edit. Default: the strength that the mapper was trained with, usually 0.1, or"
    " 1 for a mapper for any text, whose strength CLIP chooses for each avatar. Negative values"
    " edit in the opposite direction. Repeat the flag for a strip of images from the lowest to the"
    " highest.",
)
edits.define_flags()

settings.define_flag()
network_flags.define_flags()

image_flags.define_flags()


def main(_: Sequence[str]) -> None:
    """Applies the mappers with every strength to all images and writes the results."""
    process_flags.join()
    with distributed.together():
        image_flags.check_flags()
        mappers = [load_mapper(path) for path in FLAGS.mapper]
        choose_defaults(mappers)
    with edits.results_directory(command_line.script_flags(__name__)) as directory:
        places = strengths.places(directory, FLAGS.strength or [None])
        with distributed.together():
            generator = replicate(load_generator(FLAGS.generator, FLAGS.dtype))
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
                note_other_generators(mappers, generator)
                first = left[0][1] if left else batches[0]
                edit = compile_edit(generator, replicate(mappers), first.take(latents))
                seconds = time.perf_counter() - begun
                for strength, batch in left:
                    own = photos.generator_of(int(batch.indices[0]), generator)
                    taken, place = batch.take(latents), places[strength]
                    strengths.apply(edit, own, taken, batch, strength, place)
        measured = []
        if jax.process_index() == 0:
            metrics = inversion | {"compile_seconds": seconds}
            values = command_line.script_flags(__name__)
            measured = strengths.summarize(directory, places, given, metrics, values)
            edits.print_results(directory, size)
    photos.exit_if_some_failed(given)
    edits.exit_if_some_failed(measured)


def choose_defaults(mappers: Sequence[Mapper | DeltaMapper]) -> None:
    """Sets the flags that depend on the mapper; raises InputError if flags do not fit it."""
    for_any_text = any(isinstance(mapper, DeltaMapper) for mapper in mappers)
    if for_any_text and len(mappers) > 1:
        raise InputError("a mapper for any text cannot be added to others; give only one --mapper")
    if for_any_text and not FLAGS.description:
        raise InputError(f"--mapper={FLAGS.mapper[0]} is for any text; give --description")
    for name in ("description", "neutral", "clip", "templates", "directions", "min_change"):
        if FLAGS[name].present and not for_any_text:
            raise InputError(
                f"--{name} is only for mappers for any text, but --mapper={FLAGS.mapper[0]} is for"
                f" one text; remove --{name}"
            )
    if FLAGS["threshold"].present and not FLAGS.directions:
        raise InputError("--threshold has no effect without --directions; remove it")
    strengths = {mapper.config.card.strength for mapper in mappers}
    if len(strengths) > 1 and not FLAGS.strength:
        raise InputError(
            "the mappers were trained with different strengths,"
            f" {', '.join(map(str, sorted(strengths)))}; give --strength"
        )
    # An automatic strength for every image has only been measured on avatars.
    if not for_any_text or FLAGS.generator:
        FLAGS.set_default("strength", [*strengths])
    if for_any_text:
        FLAGS.set_default("neutral", NEUTRAL if FLAGS.generator else AVATARS_NEUTRAL)


def note_other_generators(mappers: Sequence[Mapper | DeltaMapper], generator: Generator) -> None:
    """Tells the user about mappers that were trained with another generator."""
    for path, mapper in zip(FLAGS.mapper, mappers, strict=True):
        if jax.process_index() == 0 and (message := foreign_generator(mapper, generator)):
            command_line.note(f"--mapper={path}: {message}")


def compile_edit(
    generator: Generator, mappers: Sequence[Mapper | DeltaMapper], latents: Latents
) -> strengths.Edit:
    """Compiles the edit."""
    mapper = mappers[0]
    if isinstance(mapper, DeltaMapper):
        edit = edit_with_any_text(generator, mapper)
        jax.block_until_ready(edit(generator, latents, 0.0))
        return edit
    program = edit_with_mappers.lower(generator, mappers, latents, (0.0,) * len(mappers)).compile()

    def apply(generator: Generator, latents: Latents, strength: Any) -> Edited:
        images, moved = program(generator, mappers, latents, (strength,) * len(mappers))
        return Edited(images, moved, strength)

    return apply


def edit_with_any_text(generator: Generator, mapper: DeltaMapper) -> strengths.Edit:
    """Reads what a mapper for any text needs, and returns its edit."""
    clip, tokenizer = replicate(load_clip(FLAGS.clip, FLAGS.dtype)), load_tokenizer(FLAGS.clip)
    note_unknown_words(FLAGS.clip, tokenizer, [FLAGS.description, FLAGS.neutral])
    dt = text_direction(clip, tokenizer, FLAGS.description, FLAGS.neutral, chosen_templates())
    selection: dict[str, Any] = {"min_change": FLAGS.min_change}
    if FLAGS.directions:
        directions = load_directions(FLAGS.directions)
        check_fingerprints(directions, generator, clip)
        selection |= {"directions": replicate(directions), "threshold": FLAGS.threshold}

    def edit(generator: Generator, latents: Latents, strength: strengths.Strength) -> Edited:
        # These are the page's programs, so that it computes the same image, bit for bit.
        styles = jax.jit(to_styles)(generator, latents)
        change = predict_change(generator, mapper, clip, styles, dt, **selection)
        used = strength
        if used is None:
            used = best_strengths_of_change(generator, mapper, clip, change, dt)
        moved = move_styles(change, used)
        return Edited(jax.jit(synthesize)(generator, moved), moved, used)

    return edit


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-apply-mapper``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
