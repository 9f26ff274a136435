"""Flattens unpickled objects to arrays and plain values by path."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ckpt_convert import pickles
from ckpt_convert.legacy import ReadStorage, read_serialized
from styleclip_jax.errors import InputError
from styleclip_jax.io.archives import allowance

# Known checkpoints have less than a tenth; a pickle with recursive containers has more.
_MAX_ENTRIES = 200_000
_MAX_PATH_LENGTH = 1000
_MAX_TEXT_LENGTH = 1000
_MAX_META_ENTRIES = 16
# NumPy's limit.
_MAX_AXES = 64
# Far above the largest tensor of a known checkpoint (50 million).
_MAX_ELEMENTS = 2**33


class Flattening:
    """Walks an unpickled object and collects its tensors and plain values.

    Args:
        reader: Reads the pickles of the file.
        read_storage: Returns the flat array of a storage.
        file_size: Bytes of the file, which limit the size of tensors that share storages.

    Attributes:
        tensors: The arrays by path: dictionary keys, list positions and attributes joined by dots.
            A bare tensor has the path "".
        values: The numbers, strings (the first 1000 characters) and None by path.
    """

    def __init__(self, reader: pickles.Reader, read_storage: ReadStorage, file_size: int):
        self.tensors: dict[str, np.ndarray] = {}
        self.values: dict[str, Any] = {}
        self._reader = reader
        self._name = reader.name
        self._read_storage = read_storage
        self._left = allowance(file_size)
        # By identity, because tensors may share a storage.
        self._serialized: dict[int, np.ndarray] = {}

    def walk(self, content: Any) -> None:
        """Collects the contents of an object.

        Raises:
            InputError: A tensor exceeds its storage, or the object is too large for a checkpoint.
        """
        pending, met = [("", content)], 1
        while pending:
            path, item = pending.pop()
            if path in self.tensors or path in self.values:
                raise InputError(f"{self._name} is damaged: {path!r} occurs twice")
            if self._collect(path, item):
                continue
            prefix, found = f"{path}." if path else "", []
            for key, child in _children(item):
                met += 1
                if met > _MAX_ENTRIES:
                    raise InputError(
                        f"{self._name} is not a checkpoint: it has more than {_MAX_ENTRIES} entries"
                    )
                if key is None:
                    continue
                if len(prefix) + len(key) > _MAX_PATH_LENGTH:
                    raise InputError(
                        f"{self._name} is not a checkpoint: its entries are nested too deeply"
                    )
                found.append((prefix + key, child))
            pending += reversed(found)

    def _collect(self, path: str, item: Any) -> bool:
        """Takes a tensor or a plain value; returns whether the object is one."""
        if isinstance(item, pickles.NumpyArray) and item.content is not None:
            item = item.content
        if isinstance(item, pickles.Tensor):
            self.tensors[path] = self._read_tensor(item, path)
        elif isinstance(item, pickles.ByteArray):
            array = self._read_bytes(item, path)
            if array.ndim:
                self.tensors[path] = array
            else:
                self.values[path] = array.item()
        elif isinstance(item, str):
            self.values[path] = item[:_MAX_TEXT_LENGTH]
        elif item is None or isinstance(item, bool | int | float):
            self.values[path] = item
        else:
            return False
        return True

    def _read_tensor(self, tensor: pickles.Tensor, path: str) -> np.ndarray:
        """A view of the tensor's storage; checks that it fits."""
        flat = self._find_storage(tensor, path)
        _, offset, shape, strides = tensor
        if not (
            _is_shape(shape)
            and _are_indices(strides)
            and _are_indices((offset,))
            and len(shape) == len(strides)
        ):
            raise InputError(f"{self._name} is damaged: tensor {path!r} has an invalid shape")
        if 0 in shape:
            return np.zeros(shape, flat.dtype)
        # The stride of an axis of length 1 is never used and may have any value.
        strides = [0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True)]
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= flat.size:
            raise InputError(
                f"{self._name} is truncated or damaged: tensor {path!r} needs {last + 1} elements,"
                f" its storage has {flat.size}"
            )
        self._count(math.prod(shape) * flat.itemsize, path)
        byte_strides = [stride * flat.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, byte_strides, writeable=False)

    def _find_storage(self, tensor: pickles.Tensor, path: str) -> np.ndarray:
        storage = tensor.storage
        if isinstance(storage, pickles.SerializedStorage):
            known = id(storage.stream)
            if known not in self._serialized:
                stream = self._as_bytes(storage.stream, path)
                if stream is None:
                    raise InputError(f"{self._name} is damaged: a storage is not bytes")
                self._serialized[known] = read_serialized(stream, self._reader)
            return self._serialized[known]
        if not isinstance(storage, pickles.Storage):
            raise InputError(f"{self._name} is damaged: tensor {path!r} has no storage")
        flat = self._read_storage(storage)
        if _are_indices((storage.offset, storage.size)):
            flat = flat[storage.offset : storage.offset + storage.size]
        return flat

    def _read_bytes(self, array: pickles.ByteArray, path: str) -> np.ndarray:
        data, shape, dtype = self._as_bytes(array.data, path), array.shape, _dtype(array.dtype)
        if data is None or dtype is None or not _is_shape(shape):
            raise InputError(f"{self._name}: {path!r} is not an array of numbers")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise InputError(
                f"{self._name} is truncated or damaged: array {path!r} has the wrong length"
            )
        self._count(len(data), path)
        flat = np.frombuffer(data, dtype)
        return flat.reshape(shape[::-1]).T if array.fortran else flat.reshape(shape)

    def _as_bytes(self, data: Any, path: str) -> bytes | bytearray | None:
        if isinstance(data, pickles.Encoded) and isinstance(data.text, str):
            self._count(len(data.text), path)
            return data.text.encode("latin1")
        return data if isinstance(data, bytes | bytearray) else None

    def _count(self, size: int, path: str) -> None:
        """Counts the bytes that a copy of an array needs."""
        self._left -= size
        if self._left < 0:
            raise InputError(
                f"{self._name}: the tensors up to {path!r} are far larger than the file"
            )


def _dtype(described: Any) -> np.dtype | None:
    """A NumPy dtype of numbers, or None."""
    if not isinstance(described, pickles.DType) or not isinstance(described.code, str):
        return None
    if not re.fullmatch("f[248]|[iu][1248]|b1", described.code):
        return None
    big_endian = isinstance(described.byte_order, str) and described.byte_order == ">"
    return np.dtype((">" if big_endian else "<") + described.code)


def _are_indices(numbers: Any) -> bool:
    return (
        type(numbers) in (list, tuple)
        and len(numbers) <= _MAX_AXES
        and all(type(n) is int and n >= 0 for n in numbers)
    )


def _is_shape(numbers: Any) -> bool:
    return _are_indices(numbers) and math.prod(n or 1 for n in numbers) <= _MAX_ELEMENTS


def _children(item: Any) -> Iterator[tuple[str | None, Any]]:
    """The parts of an object by name; None if the name is not a string or number."""
    if isinstance(item, pickles.Object):
        yield from _attributes(item.attributes)
    elif isinstance(item, pickles.PersistentObject):
        # The other entries are the class, its source code and so on.
        for key, child in itertools.islice(_entries(item.meta), _MAX_META_ENTRIES):
            if key == "state":
                yield from _attributes(child)
    else:
        yield from _entries(item)


def _attributes(attributes: Any) -> Iterator[tuple[str | None, Any]]:
    """The attributes of an instance; a module's tensors and submodules count as its own."""
    for key, child in _entries(attributes):
        if key in ("_parameters", "_buffers", "_modules"):
            yield from _entries(child)
        else:
            yield key, child


def _entries(item: Any) -> Iterator[tuple[str | None, Any]]:
    """The entries of a container; none for other objects."""
    if isinstance(item, pickles.Dictionary):
        for key, child in item.pairs:
            named = key is None or isinstance(key, str | int | float)
            yield str(key) if named else None, child
    elif type(item) in (list, tuple):
        for i, child in enumerate(item):
            yield str(i), child
