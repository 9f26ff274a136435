r"""Edits images until they match a text, or generates an image from a text alone.

Gradient descent on StyleGAN2's latent code; CLIP scores how well image and text match. Results go
to a new directory: a sheet of the first images before and after, every image, the latents and
metrics.json. Images are edited in batches on all devices of this machine; on several machines, run
the same command on each of them. Results are written per batch. To resume an interrupted run, run
the same command with --resume.

Examples:
  python optimize.py --description="a person with sunglasses"
  python optimize.py --description="a person with a beard" --image=avatar.png
  python optimize.py --num_images=8 --seed=3 \
      --description="a person with a beard" --description="a person with a red hat"
  python optimize.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 \
      --description="a person with purple hair" --latents=faces.npy --guide_resolution=256 \
      --batch_size=8
  python optimize.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 --templates \
      --guidance=direction --description="a smiling face" --keep="a face with makeup" --views=4
"""

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float
from tqdm import tqdm

from styleclip_jax.avatars import (
    AVATARS_CONFIG,
    AVATARS_GENERATE_CONFIG,
    AVATARS_GENERATE_SAMPLES,
)
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_arcface, load_generator
from styleclip_jax.io.images import read_image, sheet, write_gif, write_image
from styleclip_jax.latents import Latents, all_layers, squared_distance, synthesize, to_styles
from styleclip_jax.losses import clip_loss
from styleclip_jax.methods.linear_start import (
    SampleFeatures,
    latent_directions,
    sample_features,
)
from styleclip_jax.methods.optimization import (
    EditResult,
    Mode,
    OptimizeConfig,
    Space,
    best_fits,
    edit_latents,
)
from styleclip_jax.models import ArcFace, Generator
from styleclip_jax.runs import (
    command_line,
    edits,
    image_flags,
    network_flags,
    objective_flags,
    photos,
    process_flags,
    settings,
)
from styleclip_jax.runs import processes as distributed
from styleclip_jax.runs.edits import Batch, Task
from styleclip_jax.runs.results import (
    METRICS_FILE,
    SHEET_FILE,
    SHEET_ROWS,
    image_name,
    write_metrics,
)
from styleclip_jax.sharding import replicate

FLAGS = flags.FLAGS
DEFAULTS: Any = OptimizeConfig()

# Defaults without --generator; flags on the command line prevail.
AVATARS = {
    "edit": command_line.differences(AVATARS_CONFIG, DEFAULTS),
    "generate": {"samples": AVATARS_GENERATE_SAMPLES}
    | command_line.differences(AVATARS_GENERATE_CONFIG, OptimizeConfig(mode="generate")),
}

flags.DEFINE_multi_string(
    "description",
    None,
    "What the images should show, such as 'a person with sunglasses'. Repeat the flag for several"
    " texts; each is applied to every image. Required.",
    required=True,
)
edits.define_flags()

settings.define_flag()
network_flags.define_flags(
    "; ".join(
        f"to {mode}: {command_line.describe_flags(settings)}" for mode, settings in AVATARS.items()
    )
)
objective_flags.define_flags(DEFAULTS)
network_flags.define_arcface("for --id_lambda")

image_flags.define_flags("the random images and of the random views")

flags.DEFINE_enum(
    "mode",
    DEFAULTS.mode,
    get_args(Mode),
    "Edit images, or generate one from the text alone.",
)
flags.DEFINE_integer(
    "samples",
    0,
    "With --mode=generate: start from the best match among this number of random images. 0: start"
    " from the mean image.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "space",
    DEFAULTS.space,
    get_args(Space),
    "Latent space of the edit: w_plus changes the latent of every layer; w adds the same change to"
    " all layers, which preserves more of the image; stylespace changes the style channels.",
)
flags.DEFINE_integer(
    "start_samples",
    DEFAULTS.start_samples,
    "Find the direction of the text in W by a regression on this number of random images, and start"
    " every edit from the best of a few steps along it. This helps if the image is far from the"
    " text. 0: start from the image itself. Try 512. With --mode=generate, the images of --samples"
    " serve if they are at least as many.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "steps",
    DEFAULTS.steps,
    "Number of steps, or the maximum with --stop_loss or --patience. More steps change the image"
    " more and take longer.",
)
flags.DEFINE_float(
    "learning_rate",
    DEFAULTS.learning_rate,
    "Step size: larger steps change the image more; steps that are too large destroy it.",
)
flags.DEFINE_float(
    "l2_lambda",
    DEFAULTS.l2_lambda,
    "Weight of the latents' squared distance to the original: larger values change the image less.",
)
flags.DEFINE_float(
    "id_lambda",
    DEFAULTS.id_lambda,
    "Weight of the identity loss: for realistic faces, with --arcface; try 0.005.",
)
flags.DEFINE_float(
    "stop_loss",
    DEFAULTS.stop_loss,
    "An image is finished when its loss is below this. Default: never.",
)
flags.DEFINE_integer(
    "patience",
    DEFAULTS.patience,
    "An image is finished when its loss has not decreased for this number of steps. 0: take all"
    " steps.",
)
flags.DEFINE_float(
    "min_improvement",
    DEFAULTS.min_improvement,
    "Smallest decrease of a loss that counts as an improvement for --patience.",
)
flags.DEFINE_integer(
    "guide_resolution",
    DEFAULTS.guide_resolution,
    "Resolution of the image that CLIP sees, for example 256, which is several times faster. The"
    " result still has full resolution.",
)
flags.DEFINE_integer(
    "save_intermediate_every",
    0,
    "Steps between frames to write, with an animation of all frames. 0: no frames.",
    lower_bound=0,
)


def main(_: Sequence[str]) -> None:
    """Applies every text to all images and writes the results."""
    process_flags.join()
    with distributed.together():
        if not FLAGS.generator:
            for name, value in AVATARS[FLAGS.mode].items():
                FLAGS.set_default(name, value)
        config = command_line.config_from_flags(OptimizeConfig)
        check_flags(config)
    # After an interruption, Python must not exit while a step is still running.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with edits.results_directory(command_line.script_flags(__name__)) as directory:
        with distributed.together():
            generator = replicate(load_generator(FLAGS.generator, FLAGS.dtype))
            generator.config.check_guide_resolution(FLAGS.guide_resolution)
            texts = replicate(objective_flags.read_clips())
            arcface = replicate(load_arcface(FLAGS.arcface, FLAGS.dtype)) if FLAGS.arcface else None
            given, inverted, inversion = photos.photos_to_edit(generator, directory)
            samples = candidates(generator, texts, config)
            # In host memory, because there may be many.
            first = jax.device_get(first_latents(generator, texts, config, inverted, samples))
            size = len(jax.tree.leaves(first)[0])
            tasks = make_tasks(generator, texts, config, directory, samples)
            batches = edits.make_batches(
                size, generator.config.resolution, alone=photos.has_tuned_generators()
            )
            with edits.enough_memory(batches):
                write_first_images(directory / "before", generator, config, first, batches)
                for task, batch, part in plan(config, tasks, batches):
                    own = photos.generator_of(int(batch.indices[0]), generator)
                    edit(own, arcface, config, task, batch.take(first), part)
        measured = []
        if jax.process_index() == 0:
            measured = summarize(config, directory, tasks, given, inversion)
            edits.print_results(directory, len(measured[0]["images"]))
    photos.exit_if_some_failed(given)
    edits.exit_if_some_failed(measured)


def check_flags(config: OptimizeConfig) -> None:
    """Raises InputError if flags contradict each other."""
    if config.id_lambda and config.mode == "edit" and not FLAGS.arcface:
        raise InputError(
            f"--id_lambda={config.id_lambda} needs --arcface, the checkpoint of a face recognition"
            " network (python -m ckpt_convert arcface)"
        )
    if FLAGS.arcface and not config.id_lambda and not FLAGS.image:
        raise InputError("--arcface has no effect with --id_lambda=0; try --id_lambda=0.005")
    if config.patience == 0 and FLAGS["min_improvement"].present:
        raise InputError("--min_improvement has no effect without --patience; add --patience")
    objective_flags.check_flags()
    # Views are random too.
    random_images = ("num_images", "truncation", *(() if config.views else ("seed",)))
    if config.mode == "generate":
        unused = [
            "latents",
            "image",
            "inversion",
            *(random_images if not FLAGS.samples else random_images[:1]),
        ]
        given = [f"--{name}" for name in unused if FLAGS[name].present]
        if given or FLAGS.keep:
            raise InputError(
                f"{', '.join(given or ['--keep'])} has no effect with --mode=generate, which makes"
                " one image from the text alone; remove it, or use --mode=edit"
            )
        if config.start_samples and config.guidance == "similarity":
            raise InputError(
                "--start_samples has no effect with --mode=generate and --guidance=similarity; use"
                " --samples instead"
            )
    elif FLAGS["samples"].present:
        raise InputError("--samples has no effect without --mode=generate; try --start_samples")
    image_flags.check_flags(random_images)
    if FLAGS.generator and not FLAGS.clip:
        command_line.note(
            "the CLIP that ships with the package only knows avatars; give --clip too"
        )


def candidates(
    generator: Generator, texts: objective_flags.Texts, config: OptimizeConfig
) -> SampleFeatures | None:
    """The random images among which ``--mode=generate`` chooses starts; None without --samples."""
    if not FLAGS.samples:
        return None
    return sample_features(
        generator,
        texts.clips,
        FLAGS.samples,
        FLAGS.seed,
        FLAGS.truncation,
        config.guide_resolution,
        config.preprocess,
    )


def first_latents(
    generator: Generator,
    texts: objective_flags.Texts,
    config: OptimizeConfig,
    inverted: Latents | None,
    samples: SampleFeatures | None,
) -> Latents:
    """The latents of the images to edit; with ``--mode=generate`` one per text."""
    if config.mode == "edit":
        return image_flags.read_latents(generator, inverted)
    if samples is None:
        return generator.mean_latents(len(FLAGS.description))
    best = samples.latents[best_fits(samples, texts.descriptions, config, texts.neutral)]
    return all_layers(generator, best[:, None])


def in_space(generator: Generator, config: OptimizeConfig, latents: Latents) -> Latents:
    """Latents in the space of the optimization."""
    return jax.jit(to_styles)(generator, latents) if config.space == "stylespace" else latents


def start_directions(
    generator: Generator,
    texts: objective_flags.Texts,
    config: OptimizeConfig,
    samples: SampleFeatures | None,
) -> Array | None:
    """Directions of the texts in W along which edits start; None without ``--start_samples``.

    Computed once for all texts and batches, on the candidates if there are at least
    ``--start_samples``.
    """
    if not config.start_samples:
        return None
    if samples is None or len(samples.latents) < config.start_samples:
        samples = sample_features(
            generator,
            texts.clips,
            config.start_samples,
            resolution=config.guide_resolution,
            preprocess=config.preprocess,
        )
    return latent_directions(samples, texts.descriptions, texts.neutral)


def make_tasks(
    generator: Generator,
    texts: objective_flags.Texts,
    config: OptimizeConfig,
    directory: Path,
    samples: SampleFeatures | None,
) -> list[Task]:
    """The texts to apply."""
    directions = start_directions(generator, texts, config, samples)
    tasks = []
    for i, description in enumerate(FLAGS.description):
        text = texts._replace(descriptions=tuple(x[i : i + 1] for x in texts.descriptions))
        direction = None if directions is None else directions[i : i + 1]
        place = directory / directory_name(i, description)
        tasks.append(Task(description, place, text, direction))
    return tasks


def write_first_images(
    directory: Path,
    generator: Generator,
    config: OptimizeConfig,
    first: Any,
    batches: Sequence[Batch],
) -> None:
    """Writes the images before the edits and their latents."""
    finished = edits.finished_images(directory)
    for batch in batches:
        if not finished.issuperset(batch.numbers):
            own = photos.generator_of(int(batch.indices[0]), generator)
            latents = in_space(own, config, batch.take(first))
            images = jax.jit(synthesize)(own, latents)
            edits.write_part(directory, batch, images, latents)


def plan(
    config: OptimizeConfig, tasks: Sequence[Task], batches: Sequence[Batch]
) -> Iterator[tuple[Task, Batch, Batch]]:
    """Plans the unfinished work of this host.

    Yields:
        A text, the batch of images to start from, and the batch of results. The batches differ with
        ``--mode=generate``, where every text starts from its own image.
    """
    for i, task in enumerate(tasks):
        finished = edits.finished_images(task.directory)
        if config.mode == "edit":
            parts = [(batch, batch) for batch in batches]
        else:
            mine = i % jax.process_count() == jax.process_index()
            lone = edits.lone_batch(i)
            parts = [(lone, lone._replace(first=0))] if mine else []
        for batch, part in parts:
            if not finished.issuperset(part.numbers):
                yield task, batch, part


def edit(
    generator: Generator,
    arcface: ArcFace | None,
    config: OptimizeConfig,
    task: Task,
    first: Latents,
    batch: Batch,
) -> None:
    """Applies a text to a batch of images and writes the results."""
    latents = in_space(generator, config, first)
    images = jax.jit(synthesize)(generator, latents)
    before = similarities(task.text, config, images)
    begun = time.perf_counter()
    try:
        result = jax.block_until_ready(optimize(generator, arcface, config, task, first, batch))
        failures = result.failures()
    except FloatingPointError as error:
        # All edits failed; the unedited images are written.
        result, failures = None, dict.fromkeys(range(batch.count), str(error))
    seconds = time.perf_counter() - begun
    measured: list[dict[str, Any]] = [{"clip_similarity_before": float(x)} for x in before]
    if result is not None:
        after = similarities(task.text, config, result.images)
        distances = np.sqrt(squared_distance(result.latents, latents))
        steps, losses = np.asarray(result.steps), np.asarray(result.losses)
        for i, image in enumerate(measured):
            image |= {
                "clip_similarity_after": float(after[i]),
                "latent_distance": float(distances[i]),
                "losses": losses[: steps[i], i].tolist(),
            }
    for i, failure in failures.items():
        if i < batch.count:
            measured[i] = {"failed": failure}
            name = f"{task.directory.name}/{image_name(batch.first + i)}"
            command_line.report(f"{name}: {failure}")
    if result is not None:
        images, latents = result.images, result.latents
    edits.write_part(task.directory, batch, images, latents, measured, seconds)


def optimize(
    generator: Generator,
    arcface: ArcFace | None,
    config: OptimizeConfig,
    task: Task,
    latents: Latents,
    batch: Batch,
) -> EditResult:
    """Optimizes a batch, with a progress bar and the frames of ``--save_intermediate_every``."""
    frames = []
    frames_every = FLAGS.save_intermediate_every
    ending = f"-{batch.first:06}" if batch.first else ""
    # Every report stalls an accelerator.
    progress_every = 1 if jax.default_backend() == "cpu" else frames_every or 25

    def report(step: int, losses: np.ndarray, latents: Latents) -> None:
        bar.update(step - bar.n)
        losses = losses[: batch.count]
        bar.set_postfix(loss=f"{np.mean(losses):.3f}")
        if frames_every and step % frames_every == 0:
            images = jax.jit(synthesize)(generator, latents)[: batch.count]
            labels = [f"step {step}, loss {loss:.3f}" for loss in losses]
            frames.append(sheet(list(np.asarray(images)[:, None]), labels))
            write_image(task.directory / f"frames{ending}" / f"{step:04}.png", frames[-1])

    # No bar if standard error is a file (disable=None), and only one bar for all hosts.
    with tqdm(
        total=config.steps,
        desc=task.description + (f", from image {batch.first}" if batch.first else ""),
        unit="step",
        disable=None if jax.process_index() == 0 else True,
    ) as bar:
        result = edit_latents(
            generator,
            task.text.clips,
            latents,
            task.text.descriptions,
            config,
            arcface,
            neutral_features=task.text.neutral,
            keep_features=task.text.keep,
            directions=task.direction,
            key=jax.random.key(FLAGS.seed),
            on_progress=None if bar.disable and not frames_every else report,
            progress_every=progress_every,
        )
    if frames:
        write_gif(task.directory / f"steps{ending}.gif", frames)
    return result


def similarities(
    text: objective_flags.Texts, config: OptimizeConfig, images: Array
) -> Float[np.ndarray, " batch"]:
    """Similarities of images and a text, averaged over CLIPs."""
    loss = jax.jit(clip_loss, static_argnames="preprocess")
    losses = [
        loss(clip, images, features, config.preprocess)
        for clip, features in zip(text.clips, text.descriptions, strict=True)
    ]
    return 1 - np.mean(losses, axis=0)


def summarize(
    config: OptimizeConfig,
    directory: Path,
    tasks: Sequence[Task],
    given: photos.Photos | None,
    inversion: dict[str, Any],
) -> list[dict[str, Any]]:
    """Writes the sheet, the pasted photos and metrics.json; returns the metrics of every text."""
    before = directory / "before"
    measured = []
    for task in tasks:
        joined = edits.join_parts(task.directory)
        if given and FLAGS.paste_back:
            photos.paste_faces(task.directory / "photos", given.faces, task.directory, before)
        steps = max((len(image.get("losses", ())) for image in joined["images"]), default=0)
        names = {"description": task.description, "directory": task.directory.name}
        measured.append(names | {"steps": steps} | joined)
    edits.join_parts(before)
    columns = [edits.sheet_column(task.directory) for task in tasks]
    labels = [task.description for task in tasks]
    if given:
        rows = slice(SHEET_ROWS)
        shown = [given.originals[rows], given.aligned[rows], edits.sheet_column(before)]
        columns, labels = [*shown, *columns], ["original", "aligned", "reconstructed", *labels]
    elif config.mode == "edit":
        columns, labels = [edits.sheet_column(before), *columns], ["before", *labels]
    else:
        starts = [read_image(before / image_name(i))[None] for i in range(len(tasks))]
        columns = [column for pair in zip(starts, columns, strict=True) for column in pair]
        labels = [label for text in labels for label in ("start", text)]
    write_image(directory / SHEET_FILE, sheet(columns, labels))
    write_metrics(
        directory / METRICS_FILE,
        {"descriptions": measured, "seed": FLAGS.seed, **inversion},
        command_line.script_flags(__name__),
    )
    edits.finish(directory, (before, *(task.directory for task in tasks)))
    return measured


def directory_name(i: int, text: str) -> str:
    """Directory name of a text's results: a unique number and the words of the text."""
    return f"{i + 1}-{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:60]}".strip("-")


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-optimize``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
