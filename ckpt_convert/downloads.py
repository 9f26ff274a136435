"""Resumable downloads; a file is either complete or absent."""

import contextlib
import hashlib
import http.client
import os
import shutil
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from styleclip_jax.errors import InputError
from styleclip_jax.io.files import hold_lock

TIMEOUT = 60.0
_PIECE = 2**20

# Errors of a connection that is cut or hangs.
_INTERRUPTIONS = (
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
    ssl.SSLError,
    urllib.error.URLError,
)


def download(address: str, path: Path, sha256: str | None = None) -> None:
    """Downloads a file unless it exists, and checks it.

    The next call resumes an interrupted download from ``path`` plus ``.part``; a connection that
    ends early is resumed immediately. Proxies are taken from the environment, as by urllib.

    Args:
        address: An ``http://`` or ``https://`` address.
        path: The file; missing directories are created.
        sha256: The checksum that the publisher states, if any.

    Raises:
        InputError: The address does not return a file, or returns another file than stated.
        OSError: The file cannot be written, for example to a full disk.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with _alone(part):
            _fetch_all(address, part, resumable=sha256 is not None)
            _validator_file(part).unlink(missing_ok=True)
            if sha256 and (found := _digest(part)) != sha256:
                part.unlink()
                raise InputError(
                    f"{address} is not the published file: its SHA-256 is {found}, expected"
                    f" {sha256}"
                )
            part.rename(path)
    elif sha256 and (found := _digest(path)) != sha256:
        raise InputError(
            f"{path} is damaged: its SHA-256 is {found}, expected {sha256}; remove it and run the"
            " same command again"
        )


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Locks a download for this program."""
    busy = f"{part} is being downloaded by another program; wait for it or stop it"
    with contextlib.ExitStack() as held:
        hold_lock(part, busy, held)
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()
                _validator_file(part).unlink(missing_ok=True)


def _fetch_all(address: str, part: Path, resumable: bool) -> None:
    """Fetches repeatedly, as long as each connection makes progress."""
    while True:
        before = part.stat().st_size
        try:
            return _fetch(address, part, resumable)
        except InputError:
            raise
        except urllib.error.HTTPError as error:
            raise InputError(f"{address} cannot be downloaded: {error}") from None
        except (*_INTERRUPTIONS, ValueError) as error:
            if part.stat().st_size <= before:
                reason = getattr(error, "reason", None) or error or type(error).__name__
                raise InputError(
                    f"{address} cannot be downloaded: {reason}; run the same command to resume"
                ) from None


def _fetch(address: str, part: Path, resumable: bool) -> None:
    """Fetches the missing part over one connection."""
    have, headers = part.stat().st_size, {"User-Agent": "styleclip-jax"}
    validator = _read_validator(part)
    if have and (validator or resumable):
        headers["Range"] = f"bytes={have}-"
        if validator:
            # If the file has changed, the server sends all of it.
            headers["If-Range"] = validator
    # Encodes characters beyond ASCII; an address that is already encoded does not change.
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers=headers)
    try:
        # Not urlopen, which keeps the proxies of its first call.
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
        # The part is longer than the file, or of another file.
        os.truncate(part, 0)
        return _fetch(address, part, resumable)
    with response:
        _receive(address, response, part, have)


def _receive(address: str, response: Any, part: Path, have: int) -> None:
    """Appends a response to the part, or replaces the part if the server sends the whole file."""
    if response.headers.get_content_type() == "text/html":
        raise InputError(f"{address} is a web page, expected the address of a file")
    content_range = response.headers.get("Content-Range", "")
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        have = 0
    elif not content_range.startswith(f"bytes {have}-"):
        raise InputError(f"{address} returned another range of bytes than requested; try again")
    size = response.headers.get("Content-Length")
    total = None if size is None else have + int(size)
    if total is not None and total - have > (free := shutil.disk_usage(part.parent).free):
        raise OSError(
            f"{part} cannot be written: it needs {(total - have) / 2**20:.0f} MiB, but"
            f" {free / 2**20:.0f} MiB are free"
        )
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    # A weak validator does not guarantee the same bytes.
    _validator_file(part).write_text("" if validator.startswith("W/") else validator)
    try:
        with (
            part.open("r+b") as file,
            tqdm(
                total=total,
                initial=have,
                desc=address.rpartition("/")[2],
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            file.seek(have)
            file.truncate()
            while piece := response.read(_PIECE):
                file.write(piece)
                bar.update(len(piece))
            have = file.tell()
    except _INTERRUPTIONS:
        raise
    except OSError as error:
        raise OSError(f"{part} cannot be written ({error.strerror or error})") from error
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.validator")


def _read_validator(part: Path) -> str:
    file = _validator_file(part)
    return file.read_text() if file.exists() else ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
