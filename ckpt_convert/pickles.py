"""A pickle machine that only builds tensors and plain containers.

A pickle is a program that may call any importable function. This machine imports nothing: it looks
up each name in a list whose entries build the passive stand-ins below, and refuses every other
name. The source code in NVIDIA's files stays a string and is dropped.

Python's unpickler can be restricted too, but it hashes and copies objects that a program of a few
hundred bytes can make enormous. This machine does not hash, compare or copy, so time and memory are
proportional to the bytes read.
"""

import codecs
import pickle
import pickletools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from styleclip_jax.errors import InputError

# Known checkpoints have less than a tenth.
_MAX_OPCODES = 1_000_000
# PyTorch's magic number has 77 bits, rng states have 128.
_MAX_INTEGER_BITS = 512
_MAX_NAME_LENGTH = 1000
_MAX_ARGUMENTS = 16

# Errors of pickletools' readers and of the machine for damaged streams.
_MALFORMED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


class Storage(NamedTuple):
    """A flat array elsewhere in the file; ``offset`` and ``size`` are in elements."""

    key: str
    dtype: str
    size: int
    offset: int = 0


class SerializedStorage(NamedTuple):
    """A storage pickled by value: its bytes are a separate legacy ``torch.save`` stream."""

    stream: "bytes | Encoded"


class Tensor(NamedTuple):
    """A strided view of a storage; checked when it is read."""

    storage: Storage | SerializedStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Encoded(NamedTuple):
    """Bytes as written by protocol 2: a text to encode in Latin-1."""

    text: str


class ByteArray(NamedTuple):
    """The bytes of a NumPy array or scalar."""

    data: "bytes | bytearray | Encoded"
    dtype: "DType"
    shape: tuple[int, ...]
    fortran: bool = False


class Dictionary:
    """The pairs of a dictionary of any class, with any keys."""

    def __init__(self, pairs: Any = ()):
        self.pairs = pairs.pairs if isinstance(pairs, Dictionary) else pairs or []

    def set_state(self, state: Any) -> None:
        """Drops the attributes of the original class."""


class Object:
    """The attributes of an instance whose class is not imported."""

    attributes: Any = None

    def set_state(self, state: Any) -> None:
        """Sets the attributes."""
        self.attributes = state


class PersistentObject(NamedTuple):
    """An instance of NVIDIA's ``torch_utils.persistence``; attributes are in ``meta["state"]``."""

    meta: Any


class DType:
    """The code of a NumPy dtype, such as ``f8``, and its byte order."""

    byte_order: Any = "="

    def __init__(self, code: Any = ""):
        self.code = code

    def set_state(self, state: Any) -> None:
        """Sets the byte order."""
        self.byte_order = state[1]


class NumpyArray:
    """An array whose content is set after its construction (``ndarray.__reduce__``)."""

    content: ByteArray | None = None

    def set_state(self, state: Any) -> None:
        """Sets the content."""
        _, shape, dtype, fortran, data = state
        self.content = ByteArray(data, dtype, shape, fortran is True)


class Global(NamedTuple):
    """A class or function named by a pickle."""

    name: str


class Unpickled(NamedTuple):
    """An object of plain Python types and this module's stand-ins, and its storages by key."""

    content: Any
    storages: dict[str, Storage]


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _list(items: Any = None) -> Any:
    return [] if items is None else items


def _numpy_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> ByteArray:
    return ByteArray(data, dtype, shape, isinstance(order, str) and order == "F")


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
_STORAGES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in _DTYPES.items()
}

_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": lambda *_: Object(),
    "collections.OrderedDict": Dictionary,
    "collections.defaultdict": lambda *_: Dictionary(),
    "dnnlib.util.EasyDict": Dictionary,
    "builtins.dict": Dictionary,
    "builtins.list": _list,
    "builtins.set": _list,
    "_codecs.encode": lambda text, _: Encoded(text),
    "numpy.dtype": lambda code="", *_: DType(code),
    "numpy.ndarray": lambda *_: NumpyArray(),
    "torch.Size": _list,
    "torch.device": _first,
    "torch._utils._rebuild_tensor": lambda *geometry: Tensor(*geometry[:4]),
    "torch._utils._rebuild_tensor_v2": lambda *geometry: Tensor(*geometry[:4]),
    "torch._utils._rebuild_parameter": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "torch.storage._load_from_bytes": SerializedStorage,
    "torch_utils.persistence._reconstruct_persistent_obj": PersistentObject,
}
# NumPy 2 renamed its private package; files by both versions exist.
for _core in ("numpy.core", "numpy._core"):
    _CONSTRUCTORS |= {
        f"{_core}.multiarray._reconstruct": lambda *_: NumpyArray(),
        f"{_core}.multiarray.scalar": lambda dtype, data: ByteArray(data, dtype, ()),
        f"{_core}.numeric._frombuffer": _numpy_buffer,
    }
for _element in ("bool", "int", "double", "tensor"):
    _CONSTRUCTORS[f"torch.jit._pickle.build_{_element}list"] = _list

_HINTS = {
    "dnnlib.tflib.network.Network": "; this is a TensorFlow StyleGAN2 file: use NVIDIA's PyTorch "
    "version (stylegan2-ada-pytorch) or rosinality's conversion",
}


def _read_string(file: BinaryIO) -> str:
    """Like the reader of pickletools, but also for strings of Python 2, which are bytes."""
    return codecs.escape_decode(pickletools.read_stringnl(file, decode=False))[0].decode("latin1")


_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    opcode.name: cast(Any, opcode.arg).reader for opcode in pickletools.opcodes if opcode.arg
}
_READERS["STRING"] = _read_string


class Reader:
    """Reads the pickles of one file.

    Args:
        name: The name of the file in error messages.
    """

    def __init__(self, name: str):
        self.name = name
        self._opcodes = 0

    def load(self, file: BinaryIO) -> Unpickled:
        """Reads the next pickle of a stream.

        Args:
            file: A stream at the start of the pickle; afterwards it is at its end.

        Raises:
            InputError: The pickle calls a function that is not allowed (never executed; the message
                names it), is truncated or damaged, or has more opcodes than any checkpoint.
        """
        try:
            return self._run(_Machine(self.name), file)
        except InputError:
            raise
        except _MALFORMED as error:
            # Messages quote the stream, including line breaks and control characters.
            reason = ascii(str(error)[:100] or type(error).__name__)[1:-1]
            raise InputError(f"{self.name} is truncated or damaged: {reason}") from None

    def _run(self, machine: "_Machine", file: BinaryIO) -> Unpickled:
        while True:
            code = file.read(1)
            if not code:
                raise EOFError("a pickle has no end")
            opcode = _OPCODES[code[0]].name
            argument = _READERS[opcode](file) if opcode in _READERS else None
            if opcode == "STOP":
                return Unpickled(machine.stack.pop(), machine.storages)
            self._opcodes += 1
            if self._opcodes > _MAX_OPCODES:
                raise InputError(
                    f"{self.name} is not a checkpoint: it has more than {_MAX_OPCODES} opcodes"
                )
            machine.step(opcode, argument)


class _Machine:
    """The stack, the memo of numbered objects, and the storages of a pickle."""

    def __init__(self, name: str):
        self.name = name
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._marked: list[list[Any]] = []
        self._numbered: dict[int, Any] = {}
        self._steps = 0

    def step(self, opcode: str, argument: Any) -> None:
        """Executes an opcode; pickletools documents their names and meanings."""
        self._steps += 1
        stack = self.stack
        match opcode:
            case "PROTO":
                if argument > pickle.HIGHEST_PROTOCOL:
                    raise ValueError(f"unsupported pickle protocol {argument}")
            case "FRAME":
                pass
            case "MARK":
                self._marked.append(stack)
                self.stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                # Picklers number objects in ascending order.
                if not 0 <= argument <= self._steps:
                    raise ValueError(f"object {argument} is numbered out of order")
                self._numbered[argument] = stack[-1]
            case "MEMOIZE":
                self._numbered[len(self._numbered)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._numbered[argument])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append(Dictionary())
            case "LIST" | "FROZENSET":
                items = self._pop_mark()
                self.stack.append(items)
            case "TUPLE":
                items = self._pop_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode[-1])
                items = stack[-length:]
                del stack[-length:]
                if len(items) < length:
                    raise IndexError("the stack is empty")
                stack.append(tuple(items))
            case "DICT":
                items = self._pop_mark()
                self.stack.append(Dictionary(_pairs(items)))
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = self._pop_mark()
                _extend(self.stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _extend(stack[-1].pairs, [(key, value)])
            case "SETITEMS":
                items = self._pop_mark()
                _extend(self.stack[-1].pairs, _pairs(items))
            case "GLOBAL":
                stack.append(self._find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self._find(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_construct(stack.pop(), arguments))
            case "NEWOBJ_EX":
                _, arguments = stack.pop(), stack.pop()
                stack.append(_construct(stack.pop(), arguments))
            case "INST":
                arguments = self._pop_mark()
                self.stack.append(_construct(self._find(*argument.split(" ", 1)), arguments))
            case "OBJ":
                function, *arguments = self._pop_mark()
                self.stack.append(_construct(function, arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].set_state(state)
            case "BINPERSID":
                stack.append(self._find_storage(stack.pop()))
            case _ if opcode in _CONSTANTS:
                if type(argument) is int and argument.bit_length() > _MAX_INTEGER_BITS:
                    raise ValueError(f"an integer of {argument.bit_length()} bits")
                stack.append(argument)
            case _:
                raise pickle.UnpicklingError(f"opcode {opcode} is not supported")

    def _pop_mark(self) -> list[Any]:
        """Pops everything above the last mark."""
        items, self.stack = self.stack, self._marked.pop()
        return items

    def _find(self, module: Any, name: Any) -> Any:
        """Looks up a global in the list of allowed names."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a global has no name")
        if len(module) + len(name) > _MAX_NAME_LENGTH:
            raise ValueError(f"a global has a name of {len(module) + len(name)} characters")
        # The name in Python 2.
        module = "builtins" if module == "__builtin__" else module
        qualified = f"{module}.{name}"
        allowed = qualified in _CONSTRUCTORS or qualified in _STORAGES
        if not allowed and not qualified.startswith("__torch__."):
            raise InputError(
                f"{self.name} is refused: its pickle calls {qualified!r}, expected only tensors "
                f"and plain containers{_HINTS.get(qualified, '')}"
            )
        return Global(qualified)

    def _find_storage(self, identity: Any) -> Storage:
        """Resolves PyTorch's ``('storage', type, key, location, size[, view])``."""
        if not isinstance(identity, tuple) or len(identity) > _MAX_ARGUMENTS:
            raise TypeError("a persistent id is not a tuple")
        kind, storage, key, _, size, *view = identity
        if not (
            isinstance(kind, str)
            and kind == "storage"
            and isinstance(storage, Global)
            and isinstance(key, str)
            and len(key) <= _MAX_NAME_LENGTH
        ):
            raise pickle.UnpicklingError("a persistent id does not name a storage")
        root = Storage(key, _STORAGES[storage.name], size)
        self.storages.setdefault(key, root)
        if not view or view[0] is None:
            return root
        _, offset, view_size = view[0]
        return root._replace(size=view_size, offset=offset)


# Opcodes that push their argument.
_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def _construct(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or not isinstance(arguments, list | tuple):
        raise TypeError("a call of an object that is not a function")
    if len(arguments) > _MAX_ARGUMENTS:
        raise TypeError(f"a call with {len(arguments)} arguments")
    if function.name.startswith("__torch__."):
        return Object()
    return _CONSTRUCTORS[function.name](*arguments)


def _pairs(items: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _extend(target: Any, items: Iterable[Any]) -> None:
    if not isinstance(target, list):
        raise TypeError(f"items cannot be added to a {type(target).__name__}")
    target.extend(items)
