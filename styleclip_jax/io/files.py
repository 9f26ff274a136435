"""Paths given by users, atomic writes, and JSON that may be damaged."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from styleclip_jax.errors import InputError


@contextlib.contextmanager
def written_file_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the file's name to errors of writing it, because Python's messages often lack it."""
    try:
        yield
    except OSError as error:
        # NumPy's errors have no strerror.
        raise OSError(f"{path} cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for atomic writing: it replaces an older file when it is complete.

    Creates missing parent directories. After a failure the older file is unchanged.

    Raises:
        OSError: The file cannot be written, for example to a full disk; the message names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    with written_file_named(path):
        try:
            with unfinished.open("wb") as file:
                yield file
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def remove_unfinished(directory: epath.Path) -> None:
    """Removes a checkpoint that could not be written.

    Tensorstore's threads may still write other arrays and create directories for them, so this
    tries several times.
    """
    for _ in range(20):
        with contextlib.suppress(OSError):
            directory.rmtree(missing_ok=True)
        time.sleep(0.1)
        if not directory.exists():
            return


def last_reason(error: Exception) -> str:
    """The operating system's reason, at the end of Tensorstore's long messages."""
    return str(error).strip().partition("\n")[0].rpartition(": ")[2]


def hold_lock(path: str | os.PathLike[str], busy: str, held: contextlib.ExitStack) -> None:
    """Holds the lock of a file until ``held`` is closed; Windows has no such locks.

    Args:
        path: The file to lock; created if it is missing.
        busy: The error message if another process holds the lock.
        held: Releases the lock when it closes.

    Raises:
        InputError: Another process holds the lock.
    """
    if sys.platform == "win32":
        return
    import fcntl

    file = held.enter_context(open(path, "a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(busy) from None
    except OSError:
        pass  # A file system without locks.


def expand_user(path: str | os.PathLike[str]) -> Path:
    """The path, with ``~`` and ``~user`` replaced by home directories.

    Raises:
        InputError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{path}: there is no such user; use ./{path} for a file of this name"
        ) from None


def require_file(path: Path, expected: str) -> None:
    """Checks that a path is a regular file, because opening a FIFO or a device may block.

    Args:
        path: The file.
        expected: A description for the message, for example ``"an image file"``.

    Raises:
        InputError: It is not a regular file.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise InputError(f"{path} is a directory, expected {expected}")
    if path.exists():
        raise InputError(f"{path} is a pipe or a device, expected {expected}")
    raise InputError(f"there is no file {path}")


def parse_json(content: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: It is damaged or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply ({error})") from None
