"""PyTorch's legacy stream (``torch.save`` before 1.6): pickles, then the raw storages.

The pickles are a magic number, the protocol version, the system information, the content and the
keys of the storages (``torch/serialization.py``).
"""

import io
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ckpt_convert import pickles
from styleclip_jax.errors import InputError

MAGIC = 0x1950A86A20F9469CFC6C

ReadStorage = Callable[[pickles.Storage], np.ndarray]


def read_legacy(file: BinaryIO, reader: pickles.Reader) -> tuple[Any, ReadStorage]:
    """Reads the rest of the stream after the magic number.

    Returns:
        The content, and a function from its storages to flat arrays.

    Raises:
        InputError: The stream is truncated or damaged.
    """
    name = reader.name
    for _ in ("protocol version", "system information"):
        reader.load(file)
    content, storages = reader.load(file)
    keys = reader.load(file).content
    if not (
        type(keys) is list
        and all(type(key) is str for key in keys)
        and sorted(keys) == sorted(storages)
    ):
        raise InputError(f"{name} is damaged: its list of storages does not match its tensors")
    buffers: dict[str, bytes] = {}
    for key in keys:
        # PyTorch writes these little-endian on every machine.
        size = int.from_bytes(file.read(8), "little") * dtype(storages[key].dtype).itemsize
        if size > _remaining(file):
            raise InputError(f"{name} is truncated: storage {key!r} should have {size} bytes")
        buffers[key] = file.read(size)
    return content, lambda storage: decode(buffers[storage.key], storage.dtype)


def read_serialized(stream: bytes | bytearray, reader: pickles.Reader) -> np.ndarray:
    """Reads a stream of a single storage.

    Raises:
        InputError: The stream has other contents, or is truncated or damaged.
    """
    file = io.BytesIO(stream)
    if not is_magic(reader.load(file).content):
        raise InputError(f"{reader.name} is damaged: a storage is not in PyTorch's legacy format")
    content, read_storage = read_legacy(file, reader)
    if not isinstance(content, pickles.Storage):
        raise InputError(f"{reader.name} is damaged: a storage is a {type(content).__name__}")
    return read_storage(content)


def is_magic(content: Any) -> bool:
    """Whether a stream that begins with this object is a legacy stream."""
    return type(content) is int and content == MAGIC


def dtype(name: str) -> np.dtype:
    """The NumPy dtype of a storage."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def decode(data: bytes | bytearray, dtype_name: str, big_endian: bool = False) -> np.ndarray:
    """A flat array of a storage's bytes."""
    found = dtype(dtype_name)
    if big_endian:
        data = np.frombuffer(data, f"u{found.itemsize}").byteswap().tobytes()
    return np.frombuffer(data, found, len(data) // found.itemsize)


def _remaining(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here
