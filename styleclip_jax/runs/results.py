"""Results of a run: a new directory, images, and metrics with flags and versions."""

import contextlib
import itertools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.io.files import expand_user, hold_lock, replace_file
from styleclip_jax.io.images import write_image
from styleclip_jax.versions import library_versions

COMMAND_FILE = "command.txt"
METRICS_FILE = "metrics.json"
# The sheet of a run, and its number of rows.
SHEET_FILE, SHEET_ROWS = "before_after.png", 16


def image_name(i: int) -> str:
    """File name of an image."""
    return f"{i:03}.png"


def write_images(
    directory: Path, images: Float[Array | np.ndarray, "batch height width 3"], first: int = 0
) -> None:
    """Writes images in [-1, 1] to files; ``first`` is the number of the first one."""
    for i, image in enumerate(np.asarray(images), first):
        write_image(directory / image_name(i), image)


def write_metrics(path: Path, metrics: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """Writes measurements as JSON, with the script's flags, the device and library versions."""
    content = {
        **metrics,
        "flags": flags,
        "device": jax.devices()[0].device_kind,
        "versions": library_versions(),
    }
    with replace_file(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False).encode())


def flag_differences(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Describes how flags differ from those of an earlier run; empty if they do not."""
    return "; ".join(
        f"--{name} was {recorded.get(name)!r} and is {given.get(name)!r}"
        for name in sorted(recorded.keys() | given.keys())
        if recorded.get(name) != given.get(name)
    )


def lock_run(
    path: str | os.PathLike[str], directory: str | os.PathLike[str], held: contextlib.ExitStack
) -> None:
    """Locks a run's directory by a file in it; see :func:`styleclip_jax.io.files.hold_lock`."""
    hold_lock(path, f"a run in {directory} is still running; wait for it or stop it", held)


def check_local(path: str | os.PathLike[str]) -> None:
    """Raises InputError for a URL, such as that of a bucket."""
    if "://" in str(path):
        raise InputError(f"{path} is a URL, expected a local directory; mount it")


def numbered(path: Path, number: int) -> Path:
    """The directory itself for number 1, and a sibling for larger ones."""
    return path if number == 1 else path.with_name(f"{path.name}-{number}")


def new_run_directory(path: str | os.PathLike[str]) -> Path:
    """Creates a directory for the results of this run, and writes the command line to it.

    Nothing is overwritten: if ``path`` is not empty, the directory is ``path-2``, ``path-3`` and so
    on. Runs that start at the same time get different directories.

    Args:
        path: The directory.

    Raises:
        InputError: The directory cannot be written.
    """
    check_local(path)
    path = Path(os.path.abspath(expand_user(path)))
    command = shlex.join(["python", *sys.argv]) + "\n"
    for number in itertools.count(1):
        directory = numbered(path, number)
        there = _nearest_directory(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                continue
            with (directory / COMMAND_FILE).open("xb") as file:
                file.write(os.fsencode(command))
        except FileExistsError:
            # Another run has taken it, or it is a file.
            continue
        except OSError as error:
            _remove(directory, there)
            raise InputError(
                f"results cannot be written to {directory} ({error.strerror}); use another"
                " directory"
            ) from None
        return directory
    raise AssertionError("unreachable")


@contextlib.contextmanager
def run_directory(
    path: str | os.PathLike[str], keep: Callable[[Path], bool] = lambda _: False
) -> Iterator[Path]:
    """Like :func:`new_run_directory`, but removes incomplete results.

    If the block fails, the directory and the parents created for it are removed.

    Args:
        path: See :func:`new_run_directory`.
        keep: Called with the directory after a failure; returns whether to keep it.
    """
    check_local(path)
    path = Path(os.path.abspath(expand_user(path)))
    there = _nearest_directory(path)
    directory = new_run_directory(path)
    try:
        yield directory
    except BaseException:
        if not keep(directory):
            _remove(directory, there)
        raise


def _nearest_directory(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _remove(directory: Path, there: Path) -> None:
    """Removes a directory and its new parents; only empties a directory that existed before."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory == there:
        directory.mkdir(exist_ok=True)
    for parent in directory.parents:
        if there.is_relative_to(parent):
            break
        with contextlib.suppress(OSError):  # It holds another run's results.
            parent.rmdir()
