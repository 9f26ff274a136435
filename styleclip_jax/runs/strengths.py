"""Edits all images with every strength, for scripts that edit in one forward pass."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float

from styleclip_jax.io.images import sheet, write_image
from styleclip_jax.latents import Latents
from styleclip_jax.models import Generator
from styleclip_jax.runs import command_line, edits, photos
from styleclip_jax.runs.edits import Batch
from styleclip_jax.runs.results import (
    METRICS_FILE,
    SHEET_FILE,
    SHEET_ROWS,
    image_name,
    write_metrics,
)

FLAGS = flags.FLAGS

# None: automatic, one strength per image.
Strength = float | None


class Edited(NamedTuple):
    """A batch of edited images.

    Attributes:
        images: The images.
        latents: Their latents.
        strengths: The given strength, or the automatic one of every image.
    """

    images: Float[Array, "batch height width 3"]
    latents: Latents
    strengths: float | Float[Array, " batch"]


# Edits the images of latents with a strength.
Edit = Callable[[Generator, Latents, Strength], Edited]


def places(directory: Path, strengths: Sequence[Strength]) -> dict[Strength, Path]:
    """The directories of all strengths, and of strength 0, the images before the edit.

    In the order of the sheet, from the lowest strength to the highest; the automatic one is last.
    """
    numbers = sorted({0.0, *(x for x in strengths if x is not None)})
    automatic = [None] if None in strengths else []
    return {x: directory / name(x, "_") for x in [*numbers, *automatic]}


def name(strength: Strength, space: str) -> str:
    """The name of a strength's results."""
    if strength is None:
        return "automatic"
    return f"strength{space}{strength}" if strength else "before"


def plan(
    places: Mapping[Strength, Path], batches: Sequence[Batch]
) -> Iterator[tuple[Strength, Batch]]:
    """Yields the strengths and batches that this host has not finished."""
    for strength, place in places.items():
        finished = edits.finished_images(place)
        for batch in batches:
            if not finished.issuperset(batch.numbers):
                yield strength, batch


def apply(
    edit: Edit,
    generator: Generator,
    latents: Latents,
    batch: Batch,
    strength: Strength,
    directory: Path,
) -> None:
    """Edits a batch of images and writes the results.

    Args:
        edit: The edit.
        generator: The batch's generator.
        latents: The batch's latents.
        batch: The batch.
        strength: The strength for all images. None: automatic.
        directory: The directory for the results.
    """
    begun = time.perf_counter()
    images, moved, used = jax.block_until_ready(edit(generator, latents, strength))
    seconds = time.perf_counter() - begun
    measured: list[dict[str, Any]] = [{} for _ in batch.numbers]
    if strength is None:
        measured = [{"strength": float(x)} for x in np.asarray(used)[: batch.count]]
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    for i in np.flatnonzero(~finite[: batch.count]):
        value = measured[i].get("strength", strength)
        measured[i] = {"failed": f"the image is not finite with --strength={value}"}
        file = f"{directory.name}/{image_name(batch.first + int(i))}"
        command_line.report(f"{file}: {measured[i]['failed']}")
    if not finite.all():
        # Replaced by the unedited images.
        images, moved = jax.tree.map(
            lambda new, old: np.where(finite.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            (images, moved),
            edit(generator, latents, 0.0)[:2],
        )
    edits.write_part(directory, batch, images, moved, measured, seconds)


def summarize(
    directory: Path,
    places: Mapping[Strength, Path],
    given: photos.Photos | None,
    metrics: Mapping[str, Any],
    values: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Writes the sheet, the pasted photos and metrics.json after all batches.

    Args:
        directory: The run's directory.
        places: From :func:`places`.
        given: The edited photos, if any.
        metrics: Further measurements.
        values: The script's flags.

    Returns:
        The measurements of every strength.
    """
    measured = {name(x, " "): edits.join_parts(place) for x, place in places.items()}
    columns = {name(x, " "): edits.sheet_column(place) for x, place in places.items()}
    if given:
        rows = slice(SHEET_ROWS)
        columns = {"original": given.originals[rows], "aligned": given.aligned[rows], **columns}
    if given and FLAGS.paste_back:
        for strength, place in places.items():
            if strength != 0.0:
                photos.paste_faces(place / "photos", given.faces, place, directory / "before")
    write_image(directory / SHEET_FILE, sheet([*columns.values()], [*columns]))
    strengths = {
        label: {"seconds_per_image": joined["seconds"] / len(joined["images"]), **joined}
        for label, joined in measured.items()
    }
    write_metrics(directory / METRICS_FILE, {**metrics, "strengths": strengths}, values)
    edits.finish(directory, places.values())
    return [*strengths.values()]
