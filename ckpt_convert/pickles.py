"""A restricted unpickler: tensors and plain containers, and nothing else.

A pickle is a program that may call any importable function. Here each name that it asks for is
looked up in one list, whose entries only build the passive stand-ins below; every other name is
refused. Source code that NVIDIA's files carry stays a string and is dropped.
"""

import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from styleclip_jax.errors import InputError

# What a damaged stream can raise inside the pickle machine, besides UnpicklingError (see the
# documentation of `pickle.UnpicklingError`).
_MALFORMED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class Storage(NamedTuple):
    """A flat array that lies elsewhere in the file; ``offset`` and ``size`` count elements."""

    key: str
    dtype: str
    size: int
    offset: int = 0


class SerializedStorage(NamedTuple):
    """A storage pickled by value: the bytes are a legacy ``torch.save`` stream of its own."""

    stream: bytes


class Tensor(NamedTuple):
    """A strided view of a storage; nothing is checked until it is read."""

    storage: Storage | SerializedStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class ByteArray(NamedTuple):
    """A NumPy array or scalar by its bytes."""

    data: bytes
    dtype: "DType"
    shape: tuple[int, ...]
    fortran: bool = False


class Dictionary(dict):
    """A dictionary; attributes that its original class had are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


# A pickle may make instances without calling `__init__`, hence the defaults in the classes.


class Object:
    """The attributes of an instance whose class is not imported."""

    attributes: Any = None

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class DType:
    """A NumPy dtype's code, such as ``f8``, with its byte order."""

    code: str = ""
    byte_order: str = "="

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]


class NumpyArray:
    """An array whose content arrives after its construction (``ndarray.__reduce__``)."""

    content: ByteArray | None = None

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.content = ByteArray(data, dtype, shape, bool(fortran))


class Constructor:
    """Makes a function callable, but not changeable, from a pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """Calls the function."""
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    return Tensor(storage, offset, shape, strides)


def _persistent_object(meta: dict[str, Any]) -> Object:
    module = Object()
    module.attributes = meta["state"]
    return module


def _first(value: Any, *_: Any) -> Any:
    return value


_DTYPES = {
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
}

_ALLOWED: dict[str, Any] = {
    "argparse.Namespace": type("argparse.Namespace", (Object,), {}),
    "collections.OrderedDict": Dictionary,
    "collections.defaultdict": Constructor(lambda *_: Dictionary()),
    "dnnlib.util.EasyDict": Dictionary,
    "builtins.dict": Dictionary,
    "builtins.list": Constructor(list),
    "builtins.set": Constructor(list),
    "_codecs.encode": Constructor(lambda text, _: text.encode("latin1")),
    "numpy.dtype": DType,
    "numpy.ndarray": NumpyArray,
    "torch.Size": Constructor(tuple),
    "torch.device": Constructor(lambda *place: ":".join(map(str, place))),
    "torch._utils._rebuild_tensor": Constructor(_tensor),
    "torch._utils._rebuild_tensor_v2": Constructor(_tensor),
    "torch._utils._rebuild_parameter": Constructor(_first),
    "torch.jit._pickle.restore_type_tag": Constructor(_first),
    "torch.storage._load_from_bytes": Constructor(SerializedStorage),
    "torch_utils.persistence._reconstruct_persistent_obj": Constructor(_persistent_object),
}
# NumPy 2 renamed its private package; files of both generations are around.
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED |= {
        f"{_core}.multiarray._reconstruct": Constructor(NumpyArray),
        f"{_core}.multiarray.scalar": Constructor(lambda dtype, data: ByteArray(data, dtype, ())),
        f"{_core}.numeric._frombuffer": Constructor(
            lambda data, dtype, shape, order: ByteArray(data, dtype, shape, order == "F")
        ),
    }
for _element in ("bool", "int", "double", "tensor"):
    _ALLOWED[f"torch.jit._pickle.build_{_element}list"] = Constructor(list)
for _name, _dtype in _DTYPES.items():
    _ALLOWED |= {f"{module}.{_name}Storage": _dtype for module in ("torch", "torch.cuda")}

# Opcodes that number an object, for others to refer to.
_NUMBERING = ("PUT", "BINPUT", "LONG_BINPUT")

_HINTS = {
    "dnnlib.tflib.network.Network": "; this is a TensorFlow StyleGAN2 file, take NVIDIA's PyTorch "
    "version of it (stylegan2-ada-pytorch) or rosinality's conversion",
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads one pickle; ``storages`` collects the storages that it refers to, by key."""

    def __init__(self, file: BinaryIO, name: str):
        super().__init__(file, encoding="latin1")
        self.name = name
        self.storages: dict[str, Storage] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Looks a global up in the list of allowed names, and imports nothing."""
        # As Python 2 called it.
        module = "builtins" if module_name == "__builtin__" else module_name
        qualified = f"{module}.{global_name}"
        if qualified.startswith("__torch__."):
            return type(qualified, (Object,), {})
        if qualified not in _ALLOWED:
            raise InputError(
                f"{self.name} is refused: its pickle calls {qualified!r}, which is neither a "
                f"tensor nor a plain container{_HINTS.get(qualified, '')}"
            )
        return _ALLOWED[qualified]

    def persistent_load(self, pid: Any) -> Storage:
        """Resolves PyTorch's ``('storage', type, key, location, size[, view])``."""
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values():
            raise pickle.UnpicklingError(f"unknown persistent id {kind!r}")
        root = Storage(key, dtype, size)
        self.storages.setdefault(key, root)
        if not view or view[0] is None:
            return root
        _, offset, view_size = view[0]
        return Storage(key, dtype, view_size, offset)


def load(file: BinaryIO, name: str) -> tuple[Any, dict[str, Storage]]:
    """Reads the next pickle of a stream.

    Args:
        file: Positioned at the pickle, and left behind it.
        name: What to call the file in error messages.

    Returns:
        The object, built of Python's plain types and of this module's stand-ins, and the
        storages that it refers to, by key.

    Raises:
        InputError: The pickle calls something that is not allowed (never executed; the message
            names it), or is truncated or damaged.
    """
    unpickler = RestrictedUnpickler(file, name)
    try:
        _check_opcodes(file)
        return unpickler.load(), unpickler.storages
    except InputError:
        raise
    except _MALFORMED as error:
        # Messages quote the stream, line breaks and control characters included.
        reason = ascii(str(error) or type(error).__name__)[1:-1][:100]
        raise InputError(f"{name} is truncated or damaged: {reason}") from None


def _check_opcodes(file: BinaryIO) -> None:
    """Refuses damage that the pickle machine answers with memory instead of an error.

    It allocates what an opcode asks for before it looks whether the file has as many bytes, and a
    table as long as the highest number given to an object.
    """
    start = file.tell()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            # Whoever writes a pickle counts up.
            if opcode.name in _NUMBERING and argument is not None and int(argument) > count:
                raise pickle.UnpicklingError(f"object {argument} comes too early")
    except UnicodeDecodeError:
        pass  # A string of Python 2, which the unpickler reads.
    finally:
        file.seek(start)
