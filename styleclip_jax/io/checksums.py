"""SHA-256 of every file of a checkpoint, in the format of ``sha256sum``."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from styleclip_jax.errors import InputError

CHECKSUMS = "SHA256SUMS"


def write_checksums(directory: epath.Path) -> None:
    """Atomically writes the digests of all files below a directory to its ``SHA256SUMS``.

    Raises:
        OSError: The directory cannot be read or written.
    """
    names = sorted(name for name in _files(directory) if name != CHECKSUMS)
    lines = [f"{_digest(directory / name)}  {name}\n" for name in names]
    unfinished = directory / f"{CHECKSUMS}.unfinished"
    unfinished.write_text("".join(lines))
    unfinished.replace(directory / CHECKSUMS)


def verify_checksums(directory: epath.Path, below: Sequence[str] = ("",)) -> None:
    """Compares the files of a directory with its ``SHA256SUMS``; files not listed are ignored.

    Args:
        directory: The directory with ``SHA256SUMS``.
        below: Check only files whose paths start with one of these.

    Raises:
        InputError: ``SHA256SUMS`` is damaged, or a file is missing or damaged. The message names
            the file; callers add the directory and what to do.
        FileNotFoundError: There is no ``SHA256SUMS``.
    """
    # A damaged list may not be text; after a power loss it may be empty.
    content = (directory / CHECKSUMS).read_bytes().decode("utf-8", "replace")
    for line in content.splitlines() or [""]:
        entry = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if not entry:
            raise InputError(f"{CHECKSUMS} is damaged")
        digest, name = entry.groups()
        if not name.startswith(tuple(below)):
            continue
        if not (directory / name).is_file():
            raise InputError(f"{name} is missing")
        if _digest(directory / name) != digest:
            raise InputError(f"{name} is damaged: its SHA-256 differs from the one in {CHECKSUMS}")


def _files(directory: epath.Path, prefix: str = "") -> Iterator[str]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name


def _digest(path: epath.Path) -> str:
    opened: Any = path.open("rb")
    with opened as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
