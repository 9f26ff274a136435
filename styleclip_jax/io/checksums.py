"""SHA-256 of every file of a checkpoint, in the format of ``sha256sum``, which checks it too."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from styleclip_jax.errors import InputError

CHECKSUMS = "SHA256SUMS"


def write_checksums(directory: epath.Path) -> None:
    """Writes the digest of every file below a directory to its ``SHA256SUMS``, completely or not.

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
        directory: Where ``SHA256SUMS`` is.
        below: Only files whose paths begin with one of these.

    Raises:
        InputError: ``SHA256SUMS`` is damaged, or a file is missing or not as it was written. The
            message names the file; the caller knows the directory and the way out.
        FileNotFoundError: There is no ``SHA256SUMS``.
    """
    # A damaged list need not be text; an empty one is what a machine that lost power leaves.
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
            raise InputError(f"{name} is damaged, its SHA-256 differs from the one in {CHECKSUMS}")


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
