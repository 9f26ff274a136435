"""Reads the tensors of a checkpoint file; its format is detected from its content.

* PyTorch's zip archive (``torch.save`` since 1.6) and TorchScript archive (``torch.jit.save``);
* PyTorch's legacy stream (``torch.save`` before 1.6): pickles, then the raw storages;
* plain pickles, as NVIDIA distributes its networks;
* safetensors;
* NumPy's ``.npy``, one array;
* a Hugging Face directory with one of these and ``config.json``.
"""

import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ckpt_convert import pickles
from ckpt_convert.arrays import Flattening
from ckpt_convert.legacy import ReadStorage, decode, is_magic, read_legacy
from styleclip_jax.errors import InputError
from styleclip_jax.io.archives import Archive
from styleclip_jax.io.files import parse_json, require_file

# Errors of readers for damaged files, here and in the libraries used.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class SourceFile(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
        name: Its name in messages.
        kind: Its format: "pytorch", "torchscript", "pytorch legacy", "pickle", "safetensors" or
            "npy".
        tensors: The arrays by path: dictionary keys, list positions and attributes joined by
            dots. The path of a single bare tensor is "".
        values: The numbers, strings (the first 1000 characters) and None by path.
        config: Hugging Face's ``config.json``, empty for other formats.
    """

    name: str
    kind: str
    tensors: dict[str, np.ndarray]
    values: dict[str, Any]
    config: dict[str, Any]


def read(path: str | os.PathLike[str]) -> SourceFile:
    """Reads a checkpoint file or a Hugging Face directory.

    Args:
        path: The file or directory; any name.

    Raises:
        InputError: The path does not exist, the format is unknown, the file is truncated or
            damaged, or its pickle calls a function that is not allowed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    require_file(path, "a checkpoint file or a Hugging Face directory")
    try:
        return _read_file(path)
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is truncated or damaged: {error or type(error)}") from None


def _read_file(path: Path) -> SourceFile:
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        if not head:
            raise InputError(f"{path} is empty, expected a checkpoint; download it again")
        if head.startswith(b"PK\x03\x04"):
            return _read_zip(path)
        if head.startswith(np.lib.format.MAGIC_PREFIX):
            return _read_npy(path)
        if _is_safetensors(head, path.stat().st_size):
            return _read_safetensors(path)
        if _is_pickle(file):
            return _read_pickle(file, path)
    found = "a web page" if head.lstrip().startswith(b"<") else "of unknown format"
    raise InputError(
        f"{path} is {found}; expected a PyTorch, TorchScript, safetensors, NVIDIA .pkl or .npy file"
    )


def _is_safetensors(head: bytes, file_size: int) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= file_size


def _is_pickle(file: BinaryIO) -> bool:
    """Protocols from 2 on have a marker; older ones start with a mark, a container or a global."""
    first = file.read(1)
    file.seek(-1, io.SEEK_END)
    last = file.read(1)
    file.seek(0)
    return first == pickle.PROTO or (first in b"(]}c" and last == pickle.STOP)


def _read_directory(path: Path) -> SourceFile:
    for weights in ("model.safetensors", "pytorch_model.bin"):
        if (path / weights).is_file():
            source = read(path / weights)
            return source._replace(config=_read_json(path / "config.json"))
    raise InputError(
        f"{path} is a directory without model.safetensors or pytorch_model.bin; expected a "
        "checkpoint file or a Hugging Face directory"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}, expected a JSON object")
    return content


def _read_safetensors(path: Path) -> SourceFile:
    with safe_open(path, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    return SourceFile(str(path), "safetensors", tensors, {}, {})


def _read_npy(path: Path) -> SourceFile:
    # Mapped, because a header may state more than the file holds. Pickled objects could run code.
    array = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    return SourceFile(str(path), "npy", {"": array}, {}, {})


def _read_zip(path: Path) -> SourceFile:
    name = str(path)
    reader = pickles.Reader(name)
    try:
        with Archive(path) as archive:
            entries = set(archive.names)
            root = _archive_root(entries, name)
            big_endian = False
            if f"{root}/byteorder" in entries:
                big_endian = archive.read(f"{root}/byteorder") == b"big"
            content = reader.load(io.BytesIO(archive.read(f"{root}/data.pkl"))).content
            buffers: dict[str, bytearray] = {}

            def read_storage(storage: pickles.Storage) -> np.ndarray:
                if storage.key not in buffers:
                    buffers[storage.key] = archive.read(f"{root}/data/{storage.key}")
                return decode(buffers[storage.key], storage.dtype, big_endian)

            has_code = any(entry.startswith(f"{root}/code/") for entry in entries)
            kind = "torchscript" if has_code else "pytorch"
            return _flatten(kind, content, reader, read_storage, path)
    except OSError as error:  # Raised by Python for an entry that begins before the file.
        raise InputError(f"{name} is truncated or damaged: {error}") from None


def _archive_root(entries: set[str], name: str) -> str:
    """The root directory of a PyTorch archive, whose name varies."""
    roots = [
        root for root, *rest in (entry.split("/") for entry in entries) if rest == ["data.pkl"]
    ]
    if len(roots) != 1:
        raise InputError(f"{name} is a zip archive, but not a PyTorch file: it has no data.pkl")
    return roots[0]


def _read_pickle(file: BinaryIO, path: Path) -> SourceFile:
    reader = pickles.Reader(str(path))
    content, storages = reader.load(file)
    if is_magic(content):
        content, read_storage = read_legacy(file, reader)
        return _flatten("pytorch legacy", content, reader, read_storage, path)
    if storages:
        raise InputError(f"{path} is damaged: a plain pickle refers to storages")
    return _flatten("pickle", content, reader, _no_storage, path)


def _no_storage(storage: pickles.Storage) -> np.ndarray:
    raise KeyError(storage.key)


def _flatten(
    kind: str, content: Any, reader: pickles.Reader, read_storage: ReadStorage, path: Path
) -> SourceFile:
    flattening = Flattening(reader, read_storage, path.stat().st_size)
    flattening.walk(content)
    return SourceFile(reader.name, kind, flattening.tensors, flattening.values, {})
