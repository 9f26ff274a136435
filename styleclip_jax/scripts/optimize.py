r"""Edits images until they match a text, or generates an image from a text alone.

Gradient descent on StyleGAN2's latent code, with a loss by CLIP. Results go to a new directory: a
sheet of all images before and after, every image, the latents and metrics.json.

Examples:
  python optimize.py --description="a person with sunglasses"
  python optimize.py --description="a person with a beard" --image=avatar.png
  python optimize.py --num_images=8 --seed=3 \
      --description="a person with a beard" --description="a person with a red hat"
  python optimize.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 \
      --description="a person with purple hair" --latents=faces.npy --guide_resolution=256
  python optimize.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 --templates \
      --guidance=direction --description="a smiling face" --keep="a face with makeup" --views=4
"""

import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array
from tqdm import tqdm

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_arcface, load_generator
from styleclip_jax.io.images import sheet, write_gif, write_image
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.latents import Latents, sample_latents, squared_distance, synthesize
from styleclip_jax.losses import clip_loss
from styleclip_jax.methods.linear_start import latent_directions, sample_features
from styleclip_jax.methods.optimization import (
    AVATARS_CONFIG,
    AVATARS_GENERATE_CONFIG,
    SPACES,
    EditResult,
    OptimizeConfig,
    best_fits,
    edit_latents,
)
from styleclip_jax.models import ArcFace, Generator
from styleclip_jax.runs import command_line, objective_flags, photos, settings
from styleclip_jax.runs.results import image_name, run_directory, write_images, write_metrics

FLAGS = flags.FLAGS
DEFAULTS: Any = OptimizeConfig()

# Defaults for the small generator that ships with the package; flags on the command line prevail.
AVATARS = {
    "edit": {"start_samples": 512} | command_line.differences(AVATARS_CONFIG, DEFAULTS),
    "generate": {"samples": 64}
    | command_line.differences(AVATARS_GENERATE_CONFIG, OptimizeConfig(mode="generate")),
}

flags.DEFINE_multi_string(
    "description",
    None,
    "What the images should show, such as 'a person with sunglasses'. Repeat the flag for several"
    " texts; each is applied to every image.",
    required=True,
)
flags.DEFINE_string(
    "results_dir",
    "results",
    "New directory for the results. If it exists, results-2, results-3 and so on is used.",
)

settings.define_flag()
flags.DEFINE_string(
    "generator",
    None,
    "StyleGAN2 that synthesizes the images: a directory written by python -m ckpt_convert"
    " stylegan2. Default: the avatars that ship with the package, with these settings: "
    + "; ".join(
        f"to {mode}: {command_line.describe_flags(settings)}" for mode, settings in AVATARS.items()
    )
    + ".",
)
objective_flags.define_flags(DEFAULTS)
flags.DEFINE_string(
    "arcface",
    None,
    "Face recognition network for --id_lambda: a directory written by python -m ckpt_convert"
    " arcface.",
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
    "latents",
    None,
    "Latents of the images to edit: a .npy (W+) or .npz (StyleSpace) file written by python -m"
    " ckpt_convert latents or by an earlier run. Default: random images.",
)
flags.DEFINE_integer("num_images", 4, "Number of random images to edit.", lower_bound=1)
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the random images and of the random views.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
flags.DEFINE_float(
    "truncation",
    0.7,
    "Variety of the random images: 1 is the full variety, lower values give more typical images.",
    lower_bound=0,
)

flags.DEFINE_enum(
    "mode",
    DEFAULTS.mode,
    ["edit", "generate"],
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
    list(SPACES),
    "Latent space of the edit: w_plus changes the latent of every layer; w adds the same change to"
    " all layers, which preserves more of the image; stylespace changes the style channels.",
)
flags.DEFINE_integer(
    "start_samples",
    0,
    "Find the direction of the text in W by a regression on this number of random images, and start"
    " every edit from the best of a few steps along it. This helps if the image is far from the"
    " text. 0: start from the image itself. Try 512.",
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
    "Step size: larger steps change the image more; too large steps destroy it.",
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
    "Stop early when the loss of every image is below this.",
)
flags.DEFINE_integer(
    "patience",
    DEFAULTS.patience,
    "Stop early when no image's loss has improved for this number of steps. 0: take all steps.",
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
    """Applies every text to all images, and writes the results."""
    if not FLAGS.generator:
        for name, value in AVATARS[FLAGS.mode].items():
            FLAGS.set_default(name, value)
    config = command_line.config_from_flags(OptimizeConfig)
    check_flags(config)
    # After an interruption, Python must not exit while a step is still running.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with run_directory(FLAGS.results_dir) as directory:
        generator = load_generator(photos.generator_path(), FLAGS.dtype)
        texts = objective_flags.read_clips()
        arcface = load_arcface(FLAGS.arcface, FLAGS.dtype) if FLAGS.arcface else None

        given, inverted, measured = photos.photos_to_edit(generator, directory)
        first = first_latents(generator, texts, config, inverted)
        directions = start_directions(generator, texts, config)
        first_images = jax.jit(synthesize)(generator, first)
        write_images(directory / "before", first_images)
        save_latents(directory / "before" / "latents", first)

        columns, labels, metrics = [], [], []
        if config.mode == "edit":
            columns, labels = [first_images], ["before"]
        if given:
            columns = [given.originals, given.aligned, first_images]
            labels = ["original", "aligned", "reconstructed"]
        for i, description in enumerate(FLAGS.description):
            text = texts._replace(descriptions=tuple(x[i : i + 1] for x in texts.descriptions))
            # A text edits all images; with --mode=generate it has a start image of its own.
            latents, images = first, first_images
            if config.mode == "generate":
                latents, images = jax.tree.map(lambda x, i=i: x[i : i + 1], (first, first_images))
                columns.append(images)
                labels.append("start")
            place = directory / directory_name(i, description)
            begun = time.perf_counter()
            direction = None if directions is None else directions[i : i + 1]
            result = edit(generator, text, arcface, latents, direction, config, description, place)
            jax.block_until_ready(result)
            seconds = time.perf_counter() - begun
            write_images(place, result.images)
            save_latents(place / "latents", result.latents)
            if given and FLAGS.paste_back:
                photos.paste_faces(place / "photos", given.faces, place, directory / "before")
            columns.append(result.images)
            labels.append(description)
            metrics.append(
                {"description": description, "directory": place.name, "seconds": seconds}
                | measure(text, config, latents, images, result)
            )
        write_image(directory / "before_after.png", sheet(columns, labels))
        write_metrics(
            directory / "metrics.json",
            {"descriptions": metrics, "seed": FLAGS.seed, **measured},
            command_line.script_flags(__name__),
        )
    print(f"wrote {directory / 'before_after.png'} and all other results next to it")
    photos.exit_if_some_failed(given)


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
        if FLAGS.start_samples:
            raise InputError(
                "--start_samples has no effect with --mode=generate; use --samples instead"
            )
    elif FLAGS["samples"].present:
        raise InputError("--samples has no effect without --mode=generate; try --start_samples")
    photos.check_flags()
    for name in ("image", "inversion", "latents"):
        command_line.refuse_random_images(name, *random_images)
    if FLAGS.generator and not FLAGS.clip:
        print(
            "note: the CLIP that ships with the package only knows avatars; give --clip too",
            file=sys.stderr,
        )


def first_latents(
    generator: Generator,
    texts: objective_flags.Texts,
    config: OptimizeConfig,
    inverted: Latents | None,
) -> Latents:
    """The start latents, in the space of the optimization; with --mode=generate one per text."""
    if config.mode == "generate" and not FLAGS.samples:
        latents = generator.mean_latents(len(FLAGS.description))
    elif config.mode == "generate":
        samples = sample_latents(generator, FLAGS.samples, FLAGS.seed, FLAGS.truncation)
        latents = samples[best_fits(generator, texts.clips, samples, texts.descriptions, config)]
    elif inverted is not None:
        latents = inverted
    elif FLAGS.latents:
        latents = load_latents(FLAGS.latents, generator)
    else:
        latents = sample_latents(generator, FLAGS.num_images, FLAGS.seed, FLAGS.truncation)
    if config.space == "stylespace" and not isinstance(latents, tuple):
        latents = jax.jit(Generator.styles)(generator, latents)
    return latents


def start_directions(
    generator: Generator, texts: objective_flags.Texts, config: OptimizeConfig
) -> Array | None:
    """Directions of the texts in W along which edits start; None without ``--start_samples``."""
    if not FLAGS.start_samples:
        return None
    samples = sample_features(
        generator,
        texts.clips,
        FLAGS.start_samples,
        resolution=config.guide_resolution,
        preprocess=config.preprocess,
    )
    return latent_directions(samples, texts.descriptions, texts.neutral)


def edit(
    generator: Generator,
    text: objective_flags.Texts,
    arcface: ArcFace | None,
    latents: Latents,
    direction: Array | None,
    config: OptimizeConfig,
    description: str,
    directory: Path,
) -> EditResult:
    """Applies a text to all images, with a progress bar and optional frames."""
    frames = []
    frames_every = FLAGS.save_intermediate_every
    # The bar must not stall an accelerator at every step.
    bar_every = 1 if jax.default_backend() == "cpu" else 25

    def report(step: int, losses: Array, latents: Latents) -> None:
        bar.update(step - bar.n)
        bar.set_postfix(loss=f"{np.mean(losses):.3f}")
        if frames_every and step % frames_every == 0:
            images = jax.jit(synthesize)(generator, latents)
            labels = [f"step {step}, loss {loss:.3f}" for loss in np.asarray(losses)]
            frames.append(sheet(list(images[:, None]), labels))
            write_image(directory / "frames" / f"{step:04}.png", frames[-1])

    # No bar where standard error is a file (disable=None).
    with tqdm(total=config.steps, desc=description, unit="step", disable=None) as bar:
        result = edit_latents(
            generator,
            text.clips,
            latents,
            text.descriptions,
            config,
            arcface,
            neutral_features=text.neutral,
            keep_features=text.keep,
            directions=direction,
            key=jax.random.key(FLAGS.seed),
            on_progress=None if bar.disable and not frames_every else report,
            progress_every=math.gcd(bar_every, frames_every),
        )
    if frames:
        write_gif(directory / "steps.gif", frames)
    return result


def measure(
    text: objective_flags.Texts,
    config: OptimizeConfig,
    latents: Latents,
    images: Array,
    result: EditResult,
) -> dict:
    """Measurements of a text for metrics.json, with a list of one entry per image."""

    def similarity(images: Array) -> np.ndarray:
        loss = jax.jit(clip_loss, static_argnames="preprocess")
        losses = [
            loss(clip, images, features, config.preprocess)
            for clip, features in zip(text.clips, text.descriptions, strict=True)
        ]
        return 1 - np.mean(losses, axis=0)

    before, after = similarity(images), similarity(result.images)
    distance = np.asarray(jnp.sqrt(squared_distance(result.latents, latents)))
    steps = int(result.steps)
    losses = np.asarray(result.losses[:steps])
    return {
        "steps": steps,
        "images": [
            {
                "file": image_name(i),
                "clip_similarity_before": float(before[i]),
                "clip_similarity_after": float(after[i]),
                "latent_distance": float(distance[i]),
                "losses": losses[:, i].tolist(),
            }
            for i in range(len(images))
        ],
    }


def directory_name(i: int, text: str) -> str:
    """Directory name of a text's results: a unique number, and the words of the text."""
    return f"{i + 1}-{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:60]}".strip("-")


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-optimize``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
