"""Downloads that go on where they were interrupted, and are complete or absent."""

import contextlib
import fcntl
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

TIMEOUT = 60.0
_PIECE = 2**20

# What a connection that is cut or hangs raises.
_INTERRUPTIONS = (
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
    ssl.SSLError,
    urllib.error.URLError,
)


def download(address: str, path: Path, sha256: str | None = None) -> None:
    """Downloads a file, unless it is there, and checks it.

    What an interruption leaves in ``path`` plus ``.part`` is continued by the next call, and at
    once when a connection ends early. Proxies are taken from the environment, as urllib does.

    Args:
        address: An ``http://`` or ``https://`` address.
        path: The file; its directory is made where it is missing.
        sha256: What the publisher states, if anything.

    Raises:
        InputError: The address does not answer with a file, or with another one than stated.
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
                    f"{address} is not the file that its publisher describes: its SHA-256 is"
                    f" {found}, expected {sha256}"
                )
            part.rename(path)
    elif sha256 and (found := _digest(path)) != sha256:
        raise InputError(
            f"{path} is damaged: its SHA-256 is {found}, expected {sha256}; remove it to download"
            " it again"
        )


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Holds a download for this program."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{part} is being downloaded by another program") from None
        except OSError:
            pass  # A file system without locks.
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()
                _validator_file(part).unlink(missing_ok=True)


def _fetch_all(address: str, part: Path, resumable: bool) -> None:
    """Fetches again and again, as long as each connection brings something."""
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
                    f"{address} cannot be downloaded: {reason}; the same line goes on with it"
                ) from None


def _fetch(address: str, part: Path, resumable: bool) -> None:
    """Fetches what is missing over one connection."""
    have, headers = part.stat().st_size, {"User-Agent": "styleclip-jax"}
    validator = _read_validator(part)
    if have and (validator or resumable):
        headers["Range"] = f"bytes={have}-"
        if validator:
            # A file that has changed since then comes as a whole.
            headers["If-Range"] = validator
    # Characters beyond ASCII are encoded; an address that is encoded stays as it is.
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers=headers)
    try:
        # Not urlopen, which keeps the proxies that its first call found.
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
        # More than the whole, or of another file.
        os.truncate(part, 0)
        return _fetch(address, part, resumable)
    with response:
        _receive(address, response, part, have)


def _receive(address: str, response: Any, part: Path, have: int) -> None:
    """Appends an answer to what is there, or replaces it if the server sends the whole file."""
    if response.headers.get_content_type() == "text/html":
        raise InputError(f"{address} is a web page; expected the address of a file")
    content_range = response.headers.get("Content-Range", "")
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        have = 0
    elif not content_range.startswith(f"bytes {have}-"):
        raise InputError(f"{address} answers with other bytes than it was asked for")
    size = response.headers.get("Content-Length")
    total = None if size is None else have + int(size)
    if total is not None and total - have > (free := shutil.disk_usage(part.parent).free):
        raise OSError(
            f"{part} cannot be written: {(total - have) / 2**20:.0f} MiB are missing, and"
            f" {free / 2**20:.0f} MiB are free"
        )
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    # A weak one does not promise the same bytes.
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
