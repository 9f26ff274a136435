"""Edits any number of images in batches on all devices and hosts; results are written per batch.

During a run, a directory of edited images also holds two files per batch, named after its first
image: the latents and the metrics. The metrics are written last and mark the batch as finished::

    000.png ... 007.png
    latents-000000.npy
    metrics-000000.json

At the end they are merged into one ``latents.npy`` and the run's ``metrics.json``.
"""

import contextlib
import json
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, no_type_check

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int

from styleclip_jax.errors import InputError, is_out_of_memory
from styleclip_jax.io.files import expand_user, parse_json, replace_file
from styleclip_jax.io.images import read_image
from styleclip_jax.io.latents import save_latents
from styleclip_jax.latents import Latents
from styleclip_jax.runs import process_flags
from styleclip_jax.runs import processes as distributed
from styleclip_jax.runs.objective_flags import Texts
from styleclip_jax.runs.results import (
    COMMAND_FILE,
    METRICS_FILE,
    SHEET_FILE,
    SHEET_ROWS,
    check_local,
    flag_differences,
    image_name,
    lock_run,
    numbered,
    run_directory,
    write_images,
)
from styleclip_jax.sharding import spread

FLAGS = flags.FLAGS
# The flags of a run that is not complete.
UNFINISHED_FILE = "unfinished.json"

# Flags that a resumed run may change, because they do not affect results.
_MACHINE_FLAGS = {"results_dir", "resume", "batch_size", *process_flags.NAMES}
# Images per device. In float32, four of 1024 pixels need 8.1 GB to optimize with ViT-B/32 (8.7 GB
# with --guidance=direction and four views), and 2.1 GB to edit with a mapper or directions; 16 of
# 256 pixels need 7.6 GB to optimize. These are figures of XLA's memory_analysis for CPUs; the rest
# of a 16 GB accelerator is for the workspace of its convolutions.
_LEAST_PER_DEVICE, _MOST_PER_DEVICE = 4, 16

# --help lists the flags with those of the script that calls define_flags.
flags.disclaim_key_flags()


# absl finds the calling script in the stack, where a run-time type checker would be in between.
@no_type_check
def define_flags() -> None:
    """Defines the flags of runs that edit many images."""
    flags.DEFINE_string(
        "results_dir",
        "results",
        "New directory for the results. If it exists, results-2, results-3 and so on is used. On"
        " several machines, a directory that all of them share.",
    )
    flags.DEFINE_bool(
        "resume",
        False,
        "Resume the interrupted run in the latest of these directories; the other flags must be the"
        " same.",
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images per batch, over all devices. Default per device:"
        f" {_LEAST_PER_DEVICE} images of 1024 pixels, or up to {_MOST_PER_DEVICE} smaller ones.",
        lower_bound=1,
    )
    process_flags.define_flags()


class Batch(NamedTuple):
    """A batch of images on this host.

    Attributes:
        first: Number of the first image.
        indices: Indices of their latents; repeats of the last image fill the last batch.
        count: Number of images without these repeats; 0 if this host has none.
    """

    first: int
    indices: Int[np.ndarray, " batch"]
    count: int

    @property
    def numbers(self) -> range:
        """The numbers of the images."""
        return range(self.first, self.first + self.count)

    def take(self, latents: Any) -> Latents:
        """Takes the batch's latents from those on the host and shards them over its devices."""
        return spread(jax.tree.map(operator.itemgetter(self.indices), latents))


class Task(NamedTuple):
    """A text to apply to all images.

    Attributes:
        description: The text.
        directory: The directory of its results.
        text: Its features.
        direction: Direction in W along which its edits may start, or None.
    """

    description: str
    directory: Path
    text: Texts
    direction: Array | None


def make_batches(size: int, resolution: int, *, alone: bool = False) -> list[Batch]:
    """Splits images into this host's batches of one size, so that they share a compiled program.

    Every host has at least one batch, so that all of them can compile; with fewer images than
    devices, it may be a batch of no images.

    Args:
        size: Number of images of all hosts.
        resolution: Resolution of the images, for the default of ``--batch_size``.
        alone: Make batches of one image, because each has its own generator.

    Raises:
        InputError: The batch size is not divisible by the number of devices.
    """
    devices, hosts = jax.device_count(), jax.process_count()
    if alone:
        mine = [lone_batch(number) for number in range(jax.process_index(), size, hosts)]
        return mine or [lone_batch(size - 1)._replace(count=0)]
    per_device = _LEAST_PER_DEVICE * 1024 // resolution
    FLAGS.set_default("batch_size", devices * min(per_device, _MOST_PER_DEVICE))
    if FLAGS.batch_size % devices:
        raise InputError(
            f"--batch_size={FLAGS.batch_size} is not divisible by {devices} devices; use"
            f" --batch_size={_round_up(FLAGS.batch_size, devices)}"
        )
    whole = min(FLAGS.batch_size, _round_up(size, devices))
    share = whole // hosts
    begin = share * jax.process_index()
    batches = []
    for first in range(begin, max(size, begin + 1), whole):
        indices = np.minimum(np.arange(first, first + share), size - 1)
        batches.append(Batch(first, indices, count=max(0, min(share, size - first))))
    return batches


def lone_batch(number: int) -> Batch:
    """A batch of one image, which all devices of this host edit."""
    return Batch(number, np.full(jax.local_device_count(), number), 1)


@contextlib.contextmanager
def enough_memory(batches: Sequence[Batch]) -> Iterator[None]:
    """Raises InputError with a smaller batch size if one of the batches does not fit into memory.

    The suggestion is smaller than the actual batches, which may be smaller than ``--batch_size``.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        devices, size = jax.device_count(), len(batches[0].indices) * jax.process_count()
        if not is_out_of_memory(error) or size <= devices:
            raise
        smaller = _round_up(size // 2, devices)
        smaller = smaller if smaller < size else devices
        raise InputError(
            f"there is not enough memory for {size} images at once; try --batch_size={smaller}"
        ) from None


@contextlib.contextmanager
def results_directory(values: Mapping[str, Any]) -> Iterator[Path]:
    """The directory of ``--results_dir``: a new one, or with ``--resume`` that of an earlier run.

    If the run fails or is interrupted, the directory is kept if a batch is finished, and removed
    otherwise. The script exits if the run to resume is complete.

    Args:
        values: The script's flags.

    Raises:
        InputError: The directory cannot be written; it cannot be resumed, because it holds no run,
            a run with other flags, or a running one; or the processes do not share it.
    """
    check_local(f"--results_dir={FLAGS.results_dir}")
    path = Path(expand_user(FLAGS.results_dir)).absolute()
    recorded = {n: x for n, x in values.items() if n not in _MACHINE_FLAGS}
    recorded = json.loads(json.dumps(recorded))
    with contextlib.ExitStack() as held:
        number = 0
        with distributed.together():
            if jax.process_index() == 0:
                number = _latest(path) if FLAGS.resume else 0
                if number:
                    directory = numbered(path, number)
                    _check_resumable(directory, recorded)
                else:
                    # Removed if the run fails before the first batch is finished.
                    directory = held.enter_context(run_directory(path, keep=_has_finished))
                    number = _number(path, directory)
                    with replace_file(directory / UNFINISHED_FILE) as file:
                        file.write(json.dumps({"flags": recorded}, indent=2).encode())
                lock_run(directory / UNFINISHED_FILE, directory, held)
        directory = numbered(path, distributed.from_first(number))
        with distributed.together():
            if not (directory / UNFINISHED_FILE).exists():
                raise InputError(
                    f"{directory} is missing on process {jax.process_index()}; use a --results_dir"
                    " on a file system that all machines share"
                )
        try:
            yield directory
        except BaseException:
            if _has_finished(directory):
                print(
                    f"finished images are in {directory}; run the same command with --resume to"
                    " edit the others",
                    file=sys.stderr,
                )
            raise


def _latest(path: Path) -> int:
    """The number of the latest run's directory, or 0."""
    numbers = (_number(path, x) for x in path.parent.glob(f"{path.name}*") if x.is_dir())
    taken = (n for n in numbers if n and (numbered(path, n) / COMMAND_FILE).exists())
    return max(taken, default=0)


def _number(path: Path, directory: Path) -> int:
    """The number of a directory of :func:`numbered`, or 0 for others."""
    ending = directory.name.removeprefix(path.name)
    number = int(ending[1:]) if ending[1:].isdecimal() else int(not ending)
    return number if numbered(path, number) == directory else 0


def _check_resumable(directory: Path, values: Mapping[str, Any]) -> None:
    unfinished = directory / UNFINISHED_FILE
    path = unfinished if unfinished.exists() else directory / METRICS_FILE
    try:
        recorded = parse_json(path.read_text())["flags"]
        recorded = {n: x for n, x in recorded.items() if n not in _MACHINE_FLAGS}
    except FileNotFoundError:
        raise InputError(f"{directory} holds no run to resume; remove --resume") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged; remove --resume to start over") from None
    if differences := flag_differences(recorded, values):
        raise InputError(
            f"{directory} holds a run with other flags: {differences}. Give the same flags to"
            " resume it, give another --results_dir, or remove --resume"
        )
    if path is not unfinished:
        print(f"{directory} is complete; there is nothing left to do")
        sys.exit(0)


def _has_finished(directory: Path) -> bool:
    """Whether a batch of edited images is finished."""
    return any(path.parent.name != "before" for path in directory.glob("*/metrics-*.json"))


def finished_images(directory: Path) -> set[int]:
    """The numbers of the finished images in a directory."""
    numbers = set()
    for first, part in _parts(directory):
        numbers |= {*range(first, first + len(part["images"]))}
    return numbers


def write_part(
    directory: Path,
    batch: Batch,
    images: Float[Array | np.ndarray, "batch _ _ 3"],
    latents: Any,
    measured: Sequence[Mapping[str, Any]] = (),
    seconds: float = 0.0,
) -> None:
    """Writes the images of a batch, their latents and their measurements."""
    rows = slice(batch.count)
    write_images(directory, np.asarray(images[rows]), batch.first)
    save_latents(
        directory / f"latents-{batch.first:06}",
        jax.tree.map(lambda x: np.asarray(x[rows]), latents),
    )
    records = [
        {"file": image_name(number), **(measured[i] if measured else {})}
        for i, number in enumerate(batch.numbers)
    ]
    with replace_file(directory / f"metrics-{batch.first:06}.json") as file:
        content = {"seconds": seconds, "images": records}
        file.write(json.dumps(content, allow_nan=False).encode())


def join_parts(directory: Path) -> dict[str, Any]:
    """Merges the latents of all batches into one file and returns their measurements.

    Returns:
        ``images``, a list with one entry per image, and ``seconds``, the total time.
    """
    images, latents, seconds = [], [], 0.0
    for first, part in _parts(directory):
        # Batches overlap if a resumed run used another batch size.
        new = slice(len(images) - first, None)
        if new.start < len(part["images"]):
            images += part["images"][new]
            seconds += part["seconds"]
            loaded = _read_latents(directory / f"latents-{first:06}")
            latents.append(jax.tree.map(operator.itemgetter(new), loaded))
    save_latents(directory / "latents", jax.tree.map(lambda *x: np.concatenate(x), *latents))
    return {"seconds": seconds, "images": images}


def finish(directory: Path, places: Iterable[Path]) -> None:
    """Removes the files of single batches after metrics.json has been written."""
    for place in places:
        for pattern in ("latents-[0-9]*.np[yz]", "metrics-[0-9]*.json"):
            for path in place.glob(pattern):
                path.unlink()
    (directory / UNFINISHED_FILE).unlink()


def sheet_column(directory: Path) -> Float[np.ndarray, "rows height width 3"]:
    """Reads the first images of a directory."""
    paths = [directory / image_name(i) for i in range(SHEET_ROWS)]
    return np.stack([read_image(path) for path in paths if path.exists()])


def print_results(directory: Path, size: int) -> None:
    """Prints the path of the sheet, and how many images it shows."""
    print(f"wrote {directory / SHEET_FILE} and all other results next to it")
    if size > SHEET_ROWS:
        print(f"{SHEET_FILE} shows the first {SHEET_ROWS} of {size} images")


def exit_if_some_failed(measured: Iterable[Mapping[str, Any]]) -> None:
    """Exits with code 1 if an edit failed."""
    if any("failed" in image for edit in measured for image in edit["images"]):
        sys.exit(1)


def _parts(directory: Path) -> list[tuple[int, dict[str, Any]]]:
    """The finished batches of a directory with the numbers of their first images, in order."""
    paths = sorted(directory.glob("metrics-[0-9]*.json"), key=_first)
    return [(_first(path), parse_json(path.read_bytes())) for path in paths]


def _first(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _read_latents(path: Path) -> Any:
    """Reads latents from ``path`` with the extension that :func:`save_latents` added."""
    in_stylespace = path.with_suffix(".npz")
    if not in_stylespace.exists():
        return np.load(path.with_suffix(".npy"), mmap_mode="r")
    with np.load(in_stylespace) as arrays:
        return tuple(arrays[name] for name in sorted(arrays))


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
