"""Zip archives from untrusted sources: a small file must not inflate beyond memory."""

import contextlib
import io
import os
import zipfile
from typing import cast

from styleclip_jax.errors import InputError

# The directory of an archive is read in one piece; with 100,000 entries it is smaller than this.
_MAX_READ = 2**24
_PIECE = 2**20
# Other methods decompress without a limit.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ALLOWANCE = 2**28


def allowance(file_size: int) -> int:
    """The maximum size in bytes of a file's contents when they are inflated or copied.

    Far more than weights and latents need, because they hardly compress.
    """
    return 2 * file_size + _ALLOWANCE


class Archive(contextlib.AbstractContextManager):
    """The entries of a zip archive.

    Args:
        path: The file.

    Raises:
        zipfile.BadZipFile: The file is not an archive, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(_Bounded(path))
            self._zip = opened.enter_context(zipfile.ZipFile(file))
            self._opened = opened.pop_all()
        self.names = self._zip.namelist()
        self._path = path
        self._left = allowance(os.stat(path).st_size)

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def open(self, name: str) -> zipfile.ZipExtFile:
        """Opens an entry; at most its stated size is read.

        Raises:
            InputError: The entries opened so far exceed :func:`allowance`.
            zipfile.BadZipFile: The entry is damaged.
            KeyError: There is no such entry.
        """
        entry = self._zip.getinfo(name)
        self._left -= entry.file_size
        if self._left < 0:
            raise InputError(f"{self._path}: the archive's contents are far larger than the file")
        if entry.compress_type not in _METHODS:
            raise zipfile.BadZipFile(f"compression method {entry.compress_type}")
        return cast(zipfile.ZipExtFile, self._zip.open(entry))

    def read(self, name: str) -> bytearray:
        """The content of an entry; see :meth:`open`."""
        content = bytearray()
        with self.open(name) as file:
            while piece := file.read(_PIECE):
                content += piece
        return content


class _Bounded(io.FileIO):
    """A file that limits the size of a read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_READ:
            raise zipfile.BadZipFile(f"a piece of {size} bytes")
        return super().read(size) or b""
