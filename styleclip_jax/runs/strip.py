"""Strips of images over strengths: all images edited in batches, written, and timed."""

import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from styleclip_jax.io.images import sheet, write_image
from styleclip_jax.io.latents import save_latents
from styleclip_jax.latents import Latents
from styleclip_jax.runs.results import SHEET_FILE, SHEET_ROWS, write_images
from styleclip_jax.sharding import equal_batches

BATCH_SIZE = 8

# From latents and a strength to images and edited latents.
Edit = Callable[[Latents, float], tuple[Float[Array, "batch height width 3"], Latents]]


def write_strip(
    directory: Path,
    edit: Edit,
    latents: Latents,
    strengths: Sequence[float],
    columns: Mapping[str, Float[np.ndarray, "count height width 3"]] | None = None,
) -> dict[str, dict[str, float]]:
    """Edits all images with every strength, and writes images, latents and a sheet of the first.

    Strength 0, the image before, is always there.

    Args:
        directory: Where to write.
        edit: The edit.
        latents: Of the images.
        strengths: The strengths.
        columns: Images that stand left of the strip, by their labels.

    Returns:
        Measurements by the labels of the sheet: ``seconds_per_image``, with the compilation where
        the program was not compiled before.
    """
    batches = equal_batches(len(jax.tree.leaves(latents)[0]), BATCH_SIZE)
    sheet_columns = {label: images[:SHEET_ROWS] for label, images in (columns or {}).items()}
    measured = {}
    for strength in sorted({0.0, *strengths}):
        label = f"strength {strength}" if strength else "before"
        place = directory / label.replace(" ", "_")
        sheet_columns[label], seconds = _write_column(edit, latents, batches, strength, place)
        measured[label] = {"seconds_per_image": seconds}
    write_image(directory / SHEET_FILE, sheet([*sheet_columns.values()], [*sheet_columns]))
    return measured


def print_strip(
    directory: Path, latents: Latents, measured: Mapping[str, Mapping[str, float]]
) -> None:
    """Says where the sheet is, what is not on it, and how long an image took."""
    count = len(jax.tree.leaves(latents)[0])
    if count > SHEET_ROWS:
        print(f"{SHEET_FILE} shows the first {SHEET_ROWS} of {count} images")
    seconds = statistics.median(row["seconds_per_image"] for row in measured.values())
    print(f"wrote {directory / SHEET_FILE}, {1000 * seconds:.0f} ms per image")


def first_batch(latents: Any) -> Any:
    """The first batch that :func:`write_strip` edits, to compile a program with."""
    batches = equal_batches(len(jax.tree.leaves(latents)[0]), BATCH_SIZE)
    return jax.tree.map(operator.itemgetter(batches[0]), latents)


def _write_column(
    edit: Edit,
    latents: Latents,
    batches: Int[np.ndarray, "_ _"],
    strength: float,
    directory: Path,
) -> tuple[Float[np.ndarray, "rows height width 3"], float]:
    """Returns the first images, for the sheet, and the seconds that an image took."""
    size = len(jax.tree.leaves(latents)[0])
    rows, parts, seconds = [], [], 0.0
    for indices in batches:
        batch = jax.tree.map(operator.itemgetter(indices), latents)
        begun = time.perf_counter()
        images, edited = jax.block_until_ready(edit(batch, strength))
        seconds += time.perf_counter() - begun
        new = min(len(indices), size - indices[0])
        # The device holds no more than one batch of images.
        images = np.asarray(images)[:new]
        if not np.isfinite(images).all():
            raise FloatingPointError(f"images are not finite with --strength={strength}")
        write_images(directory, images, first=int(indices[0]))
        rows += [*images[: max(SHEET_ROWS - len(rows), 0)]]
        parts.append(jax.tree.map(operator.itemgetter(slice(new)), edited))
    save_latents(directory / "latents", jax.tree.map(lambda *x: jnp.concatenate(x), *parts))
    return np.stack(rows), seconds / batches.size
