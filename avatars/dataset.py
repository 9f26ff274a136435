"""Renders avatars: samples attributes and rasterizes Pablo Stanley's "avataaars".

    python -m avatars.dataset --count 40000 --seed 0 --out train.npz

The file contains `images` uint8 (N, 128, 128, 3) and `attributes` int8 (N, slots), with slots in
the order of `avatars.attributes.SLOTS`. With `--pairs` it also contains `other_images` and
`other_attributes`: the same avatars with another value in one random slot.
"""

import functools
import importlib.resources
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from absl import flags
from dicebear import Avatar, Style
from jaxtyping import Int8, UInt8
from PIL import Image

from avatars import attributes as table
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS
RESOLUTION = 128


@functools.cache
def _style() -> Style:
    definition = importlib.resources.files("dicebear_styles") / "avataaars.json"
    return Style(json.loads(definition.read_text()))


def render(
    attributes: Int8[np.ndarray, " slots"],
    resolution: int = RESOLUTION,
    other_options: Mapping[str, Any] | None = None,
) -> UInt8[np.ndarray, "resolution resolution 3"]:
    """Renders one avatar, antialiased, as RGB.

    Args:
        attributes: As from `avatars.attributes.sample`.
        resolution: Height and width.
        other_options: DiceBear options that prevail over those of the attributes.
    """
    options = table.dicebear_options(attributes) | dict(other_options or {})
    svg = str(Avatar(_style(), options))
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=resolution, height=resolution, skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def render_all(
    attributes: Int8[np.ndarray, "count slots"],
) -> UInt8[np.ndarray, "count 128 128 3"]:
    """Renders many avatars on all CPU cores."""
    # Unlike multiprocessing.Pool, it does not end its processes with SIGTERM, which scripts handle.
    with ProcessPoolExecutor() as pool:
        return np.stack([*pool.map(render, attributes, chunksize=64)])


def change_one_slot(
    attributes: Int8[np.ndarray, "count slots"], seed: int | Sequence[int]
) -> Int8[np.ndarray, "count slots"]:
    """Gives each avatar another random value in one random slot, both uniform."""
    rng = np.random.default_rng(seed)
    slots = rng.integers(len(table.NAMES), size=len(attributes))
    return table.with_other_values(attributes, slots, rng)


def main(_: Sequence[str]) -> None:
    """Samples, renders and writes a data set."""
    attributes = table.sample(FLAGS.count, FLAGS.seed)
    arrays = {"images": render_all(attributes), "attributes": attributes}
    if FLAGS.pairs:
        others = change_one_slot(attributes, [FLAGS.seed, 1])
        arrays |= {"other_images": render_all(others), "other_attributes": others}
    out = Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    flags.DEFINE_integer("count", 40_000, "Number of avatars.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the attributes.")
    flags.DEFINE_boolean("pairs", False, "Also render every avatar with one slot changed.")
    flags.DEFINE_string("out", None, "The .npz file to write.", required=True)
    run(main)
