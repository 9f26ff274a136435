"""Reads the tensors of a checkpoint file of any known format, told apart by its content.

* PyTorch's zip archive (``torch.save`` since 1.6) and TorchScript archive (``torch.jit.save``);
* PyTorch's legacy stream (``torch.save`` before 1.6): pickles, then the raw storages;
* plain pickles, as NVIDIA distributes its networks;
* safetensors;
* a Hugging Face directory that holds one of them beside ``config.json``.
"""

import io
import lzma
import math
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ckpt_convert import pickles
from styleclip_jax.errors import InputError
from styleclip_jax.io.files import parse_json

# The first object of a legacy stream (torch/serialization.py).
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

# No known checkpoint has a tenth of these; a pickle whose containers hold each other has more.
_MAX_ENTRIES = 200_000
_MAX_PATH_LENGTH = 1000

# Far above the largest tensor of a known checkpoint (50 million), and within a machine's memory.
_MAX_ELEMENTS = 2**33

# What readers of damaged files stumble over, here and in the libraries that they use.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

_ReadStorage = Callable[[pickles.Storage], np.ndarray]


class SourceFile(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        name: What to call it in messages.
        kind: Its format: "pytorch", "torchscript", "pytorch legacy", "pickle" or "safetensors".
        tensors: The arrays by path: dictionary keys, list positions and attributes joined by
            dots. A file that holds one bare tensor has the path "".
        values: The numbers, strings and None by path.
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
        path: The file; its name does not matter.

    Raises:
        InputError: The path does not exist, the format is unknown, the file is truncated or
            damaged, or its pickle tries to call something.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
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
            raise InputError(f"{path} is empty; was its download interrupted?")
        if head.startswith(b"PK\x03\x04"):
            return _read_zip(path)
        if _is_safetensors(head, path.stat().st_size):
            return _read_safetensors(path)
        if _is_pickle(file):
            return _read_pickle(file, str(path))
    found = "a web page" if head.lstrip().startswith(b"<") else "of unknown format"
    raise InputError(
        f"{path} is {found}; expected a PyTorch, TorchScript, safetensors or NVIDIA .pkl checkpoint"
    )


def _is_safetensors(head: bytes, file_size: int) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= file_size


def _is_pickle(file: BinaryIO) -> bool:
    """Protocols 2 and up are marked; older ones start with a mark, a container or a global."""
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
        raise InputError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def _read_safetensors(path: Path) -> SourceFile:
    with safe_open(path, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    return SourceFile(str(path), "safetensors", tensors, {}, {})


def _read_zip(path: Path) -> SourceFile:
    name = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = set(archive.namelist())
            root = _archive_root(entries, name)
            big_endian = False
            if f"{root}/byteorder" in entries:
                big_endian = archive.read(f"{root}/byteorder") == b"big"
            content, _ = pickles.load(io.BytesIO(archive.read(f"{root}/data.pkl")), name)
            buffers: dict[str, bytes] = {}

            def read_storage(storage: pickles.Storage) -> np.ndarray:
                if storage.key not in buffers:
                    buffers[storage.key] = archive.read(f"{root}/data/{storage.key}")
                return _decode(buffers[storage.key], storage.dtype, big_endian)

            tensors, values = _flatten(content, read_storage, name)
    except OSError as error:  # What bz2 says of damaged data.
        raise InputError(f"{name} is truncated or damaged: {error}") from None
    has_code = any(entry.startswith(f"{root}/code/") for entry in entries)
    kind = "torchscript" if has_code else "pytorch"
    return SourceFile(name, kind, tensors, values, {})


def _archive_root(entries: set[str], name: str) -> str:
    """The directory that all entries of PyTorch's archives lie in, named by whoever saved it."""
    roots = [
        root for root, *rest in (entry.split("/") for entry in entries) if rest == ["data.pkl"]
    ]
    if len(roots) != 1:
        raise InputError(f"{name} is a zip archive, but not one of PyTorch's: it has no data.pkl")
    return roots[0]


def _read_pickle(file: BinaryIO, name: str) -> SourceFile:
    content, storages = pickles.load(file, name)
    if content == LEGACY_MAGIC:
        content, read_storage = _read_legacy(file, name)
        return SourceFile(name, "pytorch legacy", *_flatten(content, read_storage, name), {})
    if storages:
        raise InputError(f"{name} is damaged: a plain pickle has no storages beside it")
    return SourceFile(name, "pickle", *_flatten(content, _no_storage, name), {})


def _read_legacy(file: BinaryIO, name: str) -> tuple[Any, _ReadStorage]:
    """Reads the stream behind the magic number: version, system, content, keys, raw storages."""
    for _ in ("protocol version", "system information"):
        pickles.load(file, name)
    content, storages = pickles.load(file, name)
    keys, _ = pickles.load(file, name)
    # Compared as text: what a damaged list holds need not be hashable.
    if not isinstance(keys, list) or sorted(map(repr, keys)) != sorted(map(repr, storages)):
        raise InputError(f"{name} is damaged: its list of storages does not fit its tensors")
    buffers: dict[str, bytes] = {}
    for key in keys:
        # PyTorch writes these little-endian on every machine.
        size = int.from_bytes(file.read(8), "little") * _dtype(storages[key].dtype).itemsize
        if size > _remaining(file):
            raise InputError(f"{name} is truncated: storage {key!r} should have {size} bytes")
        buffers[key] = file.read(size)
    return content, lambda storage: _decode(buffers[storage.key], storage.dtype)


def _remaining(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def _no_storage(storage: pickles.Storage) -> np.ndarray:
    raise KeyError(storage.key)


def _read_tensor(
    tensor: pickles.Tensor, read_storage: _ReadStorage, path: str, name: str
) -> np.ndarray:
    """A view of the tensor's storage, after checking that it lies inside."""
    storage, offset, shape, strides = tensor
    if isinstance(storage, pickles.SerializedStorage):
        flat = _read_serialized(storage, name)
    elif isinstance(storage, pickles.Storage):
        flat = read_storage(storage)
        if _are_indices((storage.offset, storage.size)):
            flat = flat[storage.offset : storage.offset + storage.size]
    else:
        raise InputError(f"{name} is damaged: tensor {path!r} has no storage")
    valid = _is_shape(shape) and _are_indices(strides) and _are_indices((offset,))
    if not valid or len(shape) != len(strides):
        raise InputError(f"{name} is damaged: tensor {path!r} has no valid shape")
    if 0 in shape:
        return np.zeros(shape, flat.dtype)
    # The stride of an axis of length 1 is never used, and may be anything.
    strides = [0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True)]
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= flat.size:
        raise InputError(
            f"{name} is truncated or damaged: tensor {path!r} needs {last + 1} elements, its "
            f"storage has {flat.size}"
        )
    byte_strides = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, byte_strides, writeable=False)


def _are_indices(numbers: Any) -> bool:
    return isinstance(numbers, list | tuple) and all(type(n) is int and n >= 0 for n in numbers)


def _is_shape(numbers: Any) -> bool:
    return _are_indices(numbers) and math.prod(n or 1 for n in numbers) <= _MAX_ELEMENTS


def _read_serialized(storage: pickles.SerializedStorage, name: str) -> np.ndarray:
    if not isinstance(storage.stream, bytes):
        raise InputError(f"{name} is damaged: a storage holds no bytes")
    stream = io.BytesIO(storage.stream)
    magic, _ = pickles.load(stream, name)
    if magic != LEGACY_MAGIC:
        raise InputError(f"{name} is damaged: a storage is not in PyTorch's legacy format")
    content, read_storage = _read_legacy(stream, name)
    if not isinstance(content, pickles.Storage):
        raise InputError(f"{name} is damaged: a storage holds {type(content).__name__} instead")
    return read_storage(content)


def _read_bytes(array: pickles.ByteArray, path: str, name: str) -> np.ndarray:
    dtype, shape = array.dtype, array.shape
    supported = isinstance(dtype, pickles.DType) and re.fullmatch(
        "f[248]|[iu][1248]|b1", str(dtype.code)
    )
    if not supported or not _is_shape(shape) or not isinstance(array.data, bytes | bytearray):
        raise InputError(f"{name}: {path!r} is no array of numbers")
    numpy_dtype = np.dtype((">" if dtype.byte_order == ">" else "<") + dtype.code)
    if len(array.data) != math.prod(shape) * numpy_dtype.itemsize:
        raise InputError(f"{name} is truncated or damaged: array {path!r} has a wrong length")
    flat = np.frombuffer(array.data, numpy_dtype)
    return flat.reshape(shape[::-1]).T if array.fortran else flat.reshape(shape)


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _decode(data: bytes, dtype_name: str, big_endian: bool = False) -> np.ndarray:
    dtype = _dtype(dtype_name)
    if big_endian:
        data = np.frombuffer(data, f"u{dtype.itemsize}").byteswap().tobytes()
    return np.frombuffer(data, dtype, len(data) // dtype.itemsize)


def _flatten(
    content: Any, read_storage: _ReadStorage, name: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Walks an unpickled object; returns its tensors and its plain values by path."""
    tensors: dict[str, np.ndarray] = {}
    values: dict[str, Any] = {}
    pending = [("", content)]
    for _ in range(_MAX_ENTRIES):
        if not pending:
            return tensors, values
        path, item = pending.pop()
        if len(path) > _MAX_PATH_LENGTH:
            raise InputError(f"{name} nests its entries too deep; that is no checkpoint")
        if path in tensors or path in values:
            raise InputError(f"{name} is damaged: it holds {path!r} twice")
        if isinstance(item, pickles.Tensor):
            tensors[path] = _read_tensor(item, read_storage, path, name)
        elif isinstance(item, pickles.NumpyArray) and item.content is not None:
            pending.append((path, item.content))
        elif isinstance(item, pickles.ByteArray):
            array = _read_bytes(item, path, name)
            (tensors if array.ndim else values)[path] = array if array.ndim else array.item()
        elif item is None or isinstance(item, bool | int | float | str):
            values[path] = item
        else:
            prefix = f"{path}." if path else ""
            pending += [(prefix + key, child) for key, child in reversed(_children(item))]
    raise InputError(f"{name} holds more than {_MAX_ENTRIES} entries; that is no checkpoint")


def _children(item: Any) -> list[tuple[str, Any]]:
    """The named parts of an object; a module's tensors and submodules count as its own parts."""
    if not isinstance(item, pickles.Object):
        return _entries(item)
    children = []
    for key, child in _entries(item.attributes):
        is_group = key in ("_parameters", "_buffers", "_modules")
        children += _entries(child) if is_group else [(key, child)]
    return children


def _entries(item: Any) -> list[tuple[str, Any]]:
    """The named parts of a container; whatever else it is has none."""
    if isinstance(item, dict):
        return [(str(key), child) for key, child in item.items()]
    if isinstance(item, list | tuple):
        return [(str(i), child) for i, child in enumerate(item)]
    return []
