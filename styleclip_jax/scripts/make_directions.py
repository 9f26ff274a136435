r"""Measures the relevance of a generator's style channels to a CLIP, for directions.py.

Needed once per generator and CLIP. To resume an interrupted run, run the same command again.
--method=jacobian is many times faster than the published method, --method=differences, but only
measures infinitesimal changes.

Examples:
  python make_directions.py --directions=my-avatars --generator=runs/gan --clip=runs/clip \
      --preprocess=styleclip
  python make_directions.py --directions=checkpoints/ffhq-directions --generator=checkpoints/ffhq \
      --clip=checkpoints/vit-b-32 --method=jacobian --guide_resolution=256
"""

import dataclasses
import io
import json
import os
import time
import zipfile
from collections.abc import Sequence
from typing import NoReturn, get_args

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from styleclip_jax.avatars import AVATARS_RELEVANCE_CONFIG
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_clip, load_generator, save_model, to_path
from styleclip_jax.methods.relevance import (
    Method,
    Progress,
    RelevanceConfig,
    build_directions,
    channel_statistics,
    directions_config,
    num_items,
    relevance_steps,
    unit_rows,
)
from styleclip_jax.models.clip import Preprocess
from styleclip_jax.models.directions import DirectionsConfig, Space
from styleclip_jax.runs import command_line, network_flags

FLAGS = flags.FLAGS
DEFAULTS = RelevanceConfig()
SECONDS_BETWEEN_SAVES = 60.0

# Defaults without --generator; flags on the command line prevail.
AVATARS = command_line.differences(AVATARS_RELEVANCE_CONFIG, DEFAULTS)

flags.DEFINE_string("directions", None, "New directory for the result. Required.", required=True)
network_flags.define_flags(command_line.describe_flags(AVATARS))
network_flags.define_clip("CLIP that encodes the images")
flags.DEFINE_enum(
    "method",
    DEFAULTS.method,
    get_args(Method),
    "differences: synthesize every image with every channel at both ends of its range, as"
    " published. jacobian: differentiate CLIP's features of every image.",
)
flags.DEFINE_enum(
    "space",
    DEFAULTS.space,
    get_args(Space),
    "The channels: the entries of the convolutions' styles, as published, or the entries of w,"
    " which are fewer and change all layers.",
)
flags.DEFINE_integer(
    "num_images", DEFAULTS.num_images, "Number of random images to average over.", lower_bound=1
)
flags.DEFINE_float(
    "range",
    DEFAULTS.range,
    "With --method=differences: distance of the ends from the mean, in standard deviations.",
)
flags.DEFINE_enum(
    "preprocess",
    DEFAULTS.preprocess,
    get_args(Preprocess),
    "Preprocessing for CLIP: bicubic resizes as CLIP's own preprocessing does; clip averages over"
    " areas; styleclip averages over areas and does not normalize.",
)
flags.DEFINE_integer(
    "guide_resolution",
    DEFAULTS.guide_resolution,
    "Resolution of the images that CLIP sees, for example 256, which is faster; channels of layers"
    " at higher resolutions are omitted.",
)
flags.DEFINE_integer(
    "batch_size",
    16,
    "Images, or products with the Jacobian, per device and step.",
    lower_bound=1,
)


def main(_: Sequence[str]) -> None:
    """Measures the relevance, with a progress bar, and writes the directions."""
    if not FLAGS.generator:
        for name, value in AVATARS.items():
            FLAGS.set_default(name, value)
    config = command_line.config_from_flags(RelevanceConfig)
    path = to_path(FLAGS.directions)
    if path.exists():
        raise InputError(f"{path} already exists; choose another directory or remove it first")
    generator = load_generator(FLAGS.generator, FLAGS.dtype)
    clip = load_clip(FLAGS.clip, FLAGS.dtype)
    described = directions_config(generator, clip, config)
    channels = channel_statistics(generator, described)

    progress_path = path.parent / f"{path.name}.progress.npz"
    settings = describe(config, described)
    progress = read_progress(progress_path, settings)
    saved = time.monotonic()
    steps = relevance_steps(generator, clip, config, channels, progress, FLAGS.batch_size)
    total = num_items(described.channels, config)
    try:
        with tqdm(total=total, initial=progress.done, unit="item", disable=None) as bar:
            for progress in steps:
                bar.update(progress.done - bar.n)
                if time.monotonic() > saved + SECONDS_BETWEEN_SAVES:
                    write_progress(progress_path, progress, settings)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        write_progress(progress_path, progress, settings)
        raise
    save_model(path, build_directions(described, unit_rows(progress.total), channels.std))
    progress_path.unlink(missing_ok=True)
    print(f"wrote {path}: {described.channels} channels")


def describe(config: RelevanceConfig, described: DirectionsConfig) -> str:
    """Everything that determines the result, as JSON."""
    return json.dumps([dataclasses.asdict(config), dataclasses.asdict(described), FLAGS.dtype])


def read_progress(path: epath.Path, settings: str) -> Progress:
    """Reads the progress of an earlier run with the same settings, if there is one.

    Raises:
        InputError: The file is damaged, or from a run with other settings.
    """
    config = DirectionsConfig(**json.loads(settings)[1])
    if not path.exists():
        return Progress(0, np.zeros((config.channels, config.embed_dim), np.float32))
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            same = str(file["settings"]) == settings
            progress = Progress(int(file["done"]), file["total"])
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path} is damaged; remove it to start over") from None
    if not same:
        raise InputError(
            f"{path} is the progress of a run with other models or flags; give the same flags to"
            " resume it, or remove it to start over"
        )
    return progress


def write_progress(path: epath.Path, progress: Progress, settings: str) -> None:
    """Atomically writes the progress."""
    content = io.BytesIO()
    np.savez(content, done=progress.done, total=progress.total, settings=settings)
    unfinished = path.parent / f".{path.name}.{os.getpid()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_bytes(content.getvalue())
    unfinished.replace(path)


def start() -> NoReturn:
    """Runs the script; the command ``styleclip-make-directions``."""
    command_line.run(main)


if __name__ == "__main__":
    start()
