"""Files that are either complete or absent, and JSON that may be damaged."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name, and replaces an older one, when complete.

    Missing parent directories are made. A failure midway leaves the older file as it was.

    Raises:
        OSError: The file cannot be written, for example to a full disk; the message names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        # Python's own messages often name no file, and NumPy's only count bytes.
        raise OSError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        unfinished.unlink(missing_ok=True)


def parse_json(content: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: It is damaged, or nests without end.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"it nests too deep ({error})") from None
