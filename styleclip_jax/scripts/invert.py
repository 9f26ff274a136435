r"""Finds the latents of photos, so that the other scripts can edit them.

Finds and aligns the face, predicts its latents with an encoder and refines them by optimization.
Results go to a new directory: a sheet of the first photos, aligned and reconstructed, every image,
latents.npy and metrics.json.

Examples:
  python invert.py --image=avatar.png
  python invert.py --image=avatar.png --tune
  python invert.py --generator=checkpoints/ffhq --encoder=checkpoints/e4e \
      --lpips=checkpoints/lpips --image=me.jpg --image=friends/ --faces=all
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_generator, save_model
from styleclip_jax.io.images import sheet, write_image
from styleclip_jax.methods.inversion import Inversion, reconstruction_errors
from styleclip_jax.methods.tuning import TuneConfig, tune_generator
from styleclip_jax.models import Generator
from styleclip_jax.runs import command_line, network_flags, photos
from styleclip_jax.runs.results import (
    METRICS_FILE,
    SHEET_ROWS,
    run_directory,
    write_images,
    write_metrics,
)
from styleclip_jax.sharding import replicate

FLAGS = flags.FLAGS

photos.define_flags()
flags.DEFINE_string(
    "results_dir",
    "results",
    "New directory for the results. If it exists, results-2, results-3 and so on is used.",
)
network_flags.define_flags()
network_flags.define_arcface("for a better likeness of faces")
flags.DEFINE_integer(
    "seed", 0, "Seed of inversion without an encoder.", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_bool(
    "tune",
    False,
    "For each photo, tune a copy of the generator until it reproduces the photo exactly (pivotal"
    " tuning), and save it with the latents; other scripts use it with --inversion.",
)
flags.DEFINE_integer("tune_steps", TuneConfig.steps, "With --tune: maximum steps.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    """Inverts all photos and writes the results."""
    if not FLAGS.image:
        raise InputError("--image is missing; give a photo, a directory or a glob")
    if FLAGS["tune_steps"].present and not FLAGS.tune:
        raise InputError("--tune_steps has no effect without --tune; add --tune")
    photos.check_flags()
    if FLAGS.tune and FLAGS.generator and not FLAGS.lpips:
        raise InputError("--tune needs a perceptual distance; add --lpips")
    # After an interruption, Python must not exit while a step is still running.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with run_directory(FLAGS.results_dir) as directory:
        generator = replicate(load_generator(FLAGS.generator, FLAGS.dtype))
        begun = time.perf_counter()
        networks = photos.load_networks(generator)
        given, inversion = photos.start_from_photos(generator, networks)
        metrics = {
            "images": photos.write_inversion(directory, given, inversion),
            "seconds": time.perf_counter() - begun,
        }
        columns = [given.originals, given.aligned, inversion.images]
        labels = ["original", "aligned", "reconstructed"]
        if FLAGS.tune:
            images = tune_each(directory, generator, networks, given, inversion, metrics["images"])
            columns.append(images)
            labels.append("tuned")
        rows = [column[:SHEET_ROWS] for column in columns]
        write_image(directory / "inversion.png", sheet(rows, labels))
        write_metrics(directory / METRICS_FILE, metrics, command_line.script_flags(__name__))
    print(f"wrote {directory / 'inversion.png'} and all other results next to it")
    photos.exit_if_some_failed(given)


def tune_each(
    directory: Path,
    generator: Generator,
    networks: photos.Networks,
    given: photos.Photos,
    inversion: Inversion,
    measured: list[dict[str, Any]],
) -> np.ndarray:
    """Tunes a generator for each photo, writes it and the image it synthesizes.

    Args:
        directory: The directory for the generators and images.
        generator: The generator to tune.
        networks: The networks that compare images.
        given: The photos.
        inversion: Their inversion.
        measured: The measurements of each photo, to which those of its generator are added.

    Returns:
        The images, in [-1, 1].
    """
    images = []
    for i, entry in enumerate(measured):
        latents, original = inversion.latents[i : i + 1], jnp.asarray(given.aligned[i : i + 1])
        tuned = tune(generator, networks, latents, original, entry["file"])
        image = jax.jit(Generator.__call__)(tuned, latents)
        errors = reconstruction_errors(image, original, networks.perceptual, networks.arcface)
        entry["tuned"] = {name: float(value[0]) for name, value in errors.items()}
        entry["generator"] = photos.tuned_path(i)
        save_model(directory / photos.tuned_path(i), tuned)
        images.append(np.asarray(image[0]))
    write_images(directory / "tuned", np.stack(images))
    return np.stack(images)


def tune(
    generator: Generator,
    networks: photos.Networks,
    latents: jax.Array,
    original: jax.Array,
    file: str,
) -> Generator:
    """The generator tuned for a photo, with a progress bar."""
    assert networks.perceptual is not None
    config = TuneConfig(steps=FLAGS.tune_steps)
    if not FLAGS.lpips:
        # CLIP's distances have a different scale.
        config = TuneConfig(steps=FLAGS.tune_steps, stop_distance=0.0)
    with tqdm(total=config.steps, desc=f"tuning, {file}", unit="step", disable=None) as bar:
        result = tune_generator(
            generator,
            latents,
            original,
            networks.perceptual,
            config,
            on_progress=lambda step: bar.update(step - bar.n),
        )
    return result.generator


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-invert``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
