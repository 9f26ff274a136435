r"""Edits images until they fit a text, or makes an image from a text alone.

Gradient descent on StyleGAN2's latent code; CLIP tells how well the image fits. Results go to a new
directory: a sheet of all images before and after, every image, the latents and metrics.json.

Examples:
  python optimize.py --description="a person with sunglasses"
  python optimize.py --num_images=8 --seed=3 \
      --description="a person with a beard" --description="a person with a red hat"
  python optimize.py --generator=checkpoints/ffhq --clip=checkpoints/vit-b-32 \
      --description="a person with purple hair" --latents=faces.npy --guide_resolution=256
"""

import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float
from tqdm import tqdm

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_arcface, load_clip, load_generator
from styleclip_jax.io.images import sheet, write_gif, write_image
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.io.text import encode_texts, load_tokenizer
from styleclip_jax.latents import Latents, draw, sample_latents, squared_distance
from styleclip_jax.losses import clip_loss
from styleclip_jax.methods.optimization import (
    AVATARS_CONFIG,
    AVATARS_GENERATE_CONFIG,
    EditResult,
    OptimizeConfig,
    edit_latents,
)
from styleclip_jax.models import CLIP, ArcFace, Generator
from styleclip_jax.runs import command_line
from styleclip_jax.runs.results import image_name, write_images, write_metrics

FLAGS = flags.FLAGS
DEFAULTS = OptimizeConfig()

# What differs for the small generator that comes with the package; flags that are given prevail.
AVATARS = {
    "edit": {
        name: getattr(AVATARS_CONFIG, name) for name in ("steps", "learning_rate", "l2_lambda")
    },
    "generate": {
        name: getattr(AVATARS_GENERATE_CONFIG, name) for name in ("steps", "learning_rate")
    },
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
    "New directory for the results; where it exists, results-2 and so on is taken.",
)

flags.DEFINE_string(
    "generator",
    None,
    "The network that draws the images: the directory that python -m ckpt_convert stylegan2 wrote."
    " Default: the avatars that come with the package, and settings that suit them: "
    + "; ".join(
        f"to {mode}, " + ", ".join(f"--{name}={value}" for name, value in settings.items())
        for mode, settings in AVATARS.items()
    )
    + ".",
)
flags.DEFINE_string(
    "clip",
    None,
    "The network that judges how well image and text fit: the directory that python -m"
    " ckpt_convert clip wrote. Default: one that knows avatars and nothing else.",
)
flags.DEFINE_string(
    "arcface",
    None,
    "The network that recognizes a person, which --id_lambda needs: the directory that python -m"
    " ckpt_convert arcface wrote.",
)
flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16"],
    "Precision of the arithmetic: bfloat16 is faster on GPUs and TPUs, float32 more exact.",
)

flags.DEFINE_string(
    "latents",
    None,
    "The images to edit, as the numbers (latents) that the generator draws them from: a file that"
    " python -m ckpt_convert latents or an earlier run wrote. Default: random images.",
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

flags.DEFINE_enum(
    "mode",
    DEFAULTS.mode,
    ["edit", "generate"],
    "Edit images, or generate one from the text alone, starting from the mean image.",
)
flags.DEFINE_enum(
    "space",
    DEFAULTS.space,
    ["w_plus", "stylespace"],
    "What to change: w_plus, the latents of every layer, or stylespace, the finer style channels"
    " that are made of them.",
)
flags.DEFINE_integer(
    "steps",
    DEFAULTS.steps,
    "Number of steps, or the most steps where --stop_loss or --patience ends the run: more of them"
    " change the image more and take longer.",
)
flags.DEFINE_float(
    "learning_rate",
    DEFAULTS.learning_rate,
    "Size of a step: larger ones change the image more; too large ones spoil it.",
)
flags.DEFINE_float(
    "l2_lambda",
    DEFAULTS.l2_lambda,
    "How much the image is held to what it was: larger values change it less.",
)
flags.DEFINE_float(
    "id_lambda",
    DEFAULTS.id_lambda,
    "How much the person's identity is held: for realistic faces, with --arcface; try 0.005.",
)
flags.DEFINE_float(
    "stop_loss",
    DEFAULTS.stop_loss,
    "Stop early when every image's loss, the number that the run makes smaller, is below this.",
)
flags.DEFINE_integer(
    "patience",
    DEFAULTS.patience,
    "Stop early when no image's loss has become smaller for so many steps; 0: take all steps.",
)
flags.DEFINE_float(
    "min_improvement",
    DEFAULTS.min_improvement,
    "By how much a loss has to become smaller before --patience starts to count anew.",
)
flags.DEFINE_integer(
    "guide_resolution",
    DEFAULTS.guide_resolution,
    "Let CLIP see the image at this lower resolution, for example 256, which is several times"
    " faster; the result has full resolution all the same.",
)
flags.DEFINE_enum(
    "preprocess",
    DEFAULTS.preprocess,
    ["styleclip", "clip"],
    "What CLIP sees: the image as the official StyleCLIP shows it, or as CLIP was trained.",
)
flags.DEFINE_integer(
    "save_intermediate_every",
    0,
    "Save a picture every so many steps, and an animation of them; 0: none.",
    lower_bound=0,
)


def main(_: Sequence[str]) -> None:
    """Applies every text to all images, and writes the results."""
    if not FLAGS.generator:
        for name, value in AVATARS[FLAGS.mode].items():
            FLAGS.set_default(name, value)
    config = command_line.config_from_flags(OptimizeConfig)
    check_flags(config)
    # Python must not end while a step, which an interruption may have left behind, still runs.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with command_line.run_directory(FLAGS.results_dir) as directory:
        generator = load_generator(FLAGS.generator, FLAGS.dtype)
        clip = load_clip(FLAGS.clip, FLAGS.dtype)
        tokenizer = load_tokenizer(FLAGS.clip)
        arcface = load_arcface(FLAGS.arcface, FLAGS.dtype) if FLAGS.arcface else None
        text_features = encode_texts(clip, tokenizer, FLAGS.description)

        latents = first_latents(generator, config)
        images = jax.jit(draw)(generator, latents)
        write_images(directory / "before", images)
        save_latents(directory / "before" / "latents", latents)

        columns, metrics = [images], []
        for i, text in enumerate(FLAGS.description):
            features = text_features[i : i + 1]
            place = directory / directory_name(i, text)
            begun = time.perf_counter()
            result = edit(generator, clip, arcface, latents, features, config, text, place)
            jax.block_until_ready(result)
            seconds = time.perf_counter() - begun
            write_images(place, result.images)
            save_latents(place / "latents", result.latents)
            columns.append(result.images)
            metrics.append(
                {"description": text, "directory": place.name, "seconds": seconds}
                | measure(clip, features, config, latents, images, result)
            )
        labels = ["before" if config.mode == "edit" else "mean image", *FLAGS.description]
        write_image(directory / "before_after.png", sheet(columns, labels))
        write_metrics(
            directory / "metrics.json",
            {"descriptions": metrics, "seed": FLAGS.seed},
            command_line.script_flags(__name__),
        )
    print(f"wrote {directory / 'before_after.png'} and all results beside it")


def check_flags(config: OptimizeConfig) -> None:
    """Raises InputError where flags contradict each other."""
    if config.id_lambda and config.mode == "edit" and not FLAGS.arcface:
        raise InputError(
            f"--id_lambda={config.id_lambda} needs --arcface, the checkpoint of a face recognition"
            " network (python -m ckpt_convert arcface)"
        )
    if FLAGS.arcface and not config.id_lambda:
        raise InputError("--arcface is for the identity, which --id_lambda=0 leaves out; try 0.005")
    if config.patience == 0 and FLAGS["min_improvement"].present:
        raise InputError("--min_improvement goes with --patience, which is not given")
    random_images = ("num_images", "seed", "truncation")
    given = FLAGS.latents or any(FLAGS[name].present for name in random_images)
    if config.mode == "generate" and given:
        raise InputError(
            "--mode=generate makes one image, from the mean image; leave out --latents,"
            " --num_images, --seed and --truncation, or use --mode=edit"
        )
    command_line.refuse_random_images("latents", *random_images)
    if FLAGS.generator and not FLAGS.clip:
        print(
            "note: the CLIP that comes with the package knows nothing but avatars; give --clip too",
            file=sys.stderr,
        )


def first_latents(generator: Generator, config: OptimizeConfig) -> Latents:
    """The latents to start from, in the space of the optimization."""
    if config.mode == "generate":
        latents = generator.mean_latents(1)
    elif FLAGS.latents:
        latents = load_latents(FLAGS.latents, generator)
    else:
        latents = sample_latents(generator, FLAGS.num_images, FLAGS.seed, FLAGS.truncation)
    if config.space == "stylespace" and not isinstance(latents, tuple):
        latents = jax.jit(Generator.styles)(generator, latents)
    return latents


def edit(
    generator: Generator,
    clip: CLIP,
    arcface: ArcFace | None,
    latents: Latents,
    features: Float[Array, "1 embed"],
    config: OptimizeConfig,
    text: str,
    directory: Path,
) -> EditResult:
    """Applies a text to all images, with a progress bar and, if asked for, frames."""
    frames = []
    frames_every = FLAGS.save_intermediate_every
    # The bar must not make an accelerator wait for the host at every step.
    bar_every = 1 if jax.default_backend() == "cpu" else 25

    def report(step: int, losses: Array, latents: Latents) -> None:
        bar.update(step - bar.n)
        bar.set_postfix(loss=f"{np.mean(losses):.3f}")
        if frames_every and step % frames_every == 0:
            images = jax.jit(draw)(generator, latents)
            labels = [f"step {step}, loss {loss:.3f}" for loss in np.asarray(losses)]
            frames.append(sheet(list(images[:, None]), labels))
            write_image(directory / "frames" / f"{step:04}.png", frames[-1])

    # No bar where standard error is a file (disable=None).
    with tqdm(total=config.steps, desc=text, unit="step", disable=None) as bar:
        result = edit_latents(
            generator,
            clip,
            latents,
            features,
            config,
            arcface,
            on_progress=None if bar.disable and not frames_every else report,
            progress_every=math.gcd(bar_every, frames_every),
        )
    if frames:
        write_gif(directory / "steps.gif", frames)
    return result


def measure(
    clip: CLIP,
    features: Float[Array, "1 embed"],
    config: OptimizeConfig,
    latents: Latents,
    images: Array,
    result: EditResult,
) -> dict:
    """What metrics.json says about a text: a list of measurements per image."""
    distances = jax.jit(clip_loss, static_argnames="preprocess")
    before, after = (
        np.asarray(1 - distances(clip, x, features, config.preprocess))
        for x in (images, result.images)
    )
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
    """Directory name of a text's results: a number, which makes it unique, and its words."""
    return f"{i + 1}-{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:60]}".strip("-")


if __name__ == "__main__":
    command_line.run(main)
