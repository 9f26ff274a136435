"""A pickle machine that builds tensors and plain containers, and nothing else.

A pickle is a program that may call any importable function. This machine imports nothing: it looks
each name up in one list, whose entries only build the passive stand-ins below, and refuses every
other name. Source code that NVIDIA's files carry stays a string and is dropped.

Python's own unpickler can be restricted likewise, but it hashes and copies what a program of a few
hundred bytes has made endless. This one hashes nothing, compares nothing and copies nothing, so
that time and memory are proportional to the bytes that are read.
"""

import codecs
import pickle
import pickletools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from styleclip_jax.errors import InputError

# No known checkpoint has a tenth of these.
_MAX_OPCODES = 1_000_000
# PyTorch's magic number has 77 bits, the states of random generators have 128.
_MAX_INTEGER_BITS = 512
_MAX_NAME_LENGTH = 1000
_MAX_ARGUMENTS = 16

# What a damaged stream makes of the readers of pickletools and of the machine.
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
    """A flat array that lies elsewhere in the file; ``offset`` and ``size`` count elements."""

    key: str
    dtype: str
    size: int
    offset: int = 0


class SerializedStorage(NamedTuple):
    """A storage pickled by value: the bytes are a legacy ``torch.save`` stream of its own."""

    stream: "bytes | Encoded"


class Tensor(NamedTuple):
    """A strided view of a storage; nothing is checked until it is read."""

    storage: Storage | SerializedStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Encoded(NamedTuple):
    """Bytes as protocol 2 writes them: a text to encode in Latin-1."""

    text: str


class ByteArray(NamedTuple):
    """A NumPy array or scalar by its bytes."""

    data: "bytes | bytearray | Encoded"
    dtype: "DType"
    shape: tuple[int, ...]
    fortran: bool = False


class Dictionary:
    """A dictionary of any class by its pairs; keys may be anything."""

    def __init__(self, pairs: Any = ()):
        self.pairs = pairs.pairs if isinstance(pairs, Dictionary) else pairs or []

    def set_state(self, state: Any) -> None:
        """Drops the attributes that the original class had."""


class Object:
    """An instance of a class that is not imported, by its attributes."""

    attributes: Any = None

    def set_state(self, state: Any) -> None:
        """Takes the attributes."""
        self.attributes = state


class PersistentObject(NamedTuple):
    """An instance of NVIDIA's ``torch_utils.persistence``; ``meta["state"]`` has its attributes."""

    meta: Any


class DType:
    """A NumPy dtype's code, such as ``f8``, with its byte order."""

    byte_order: Any = "="

    def __init__(self, code: Any = ""):
        self.code = code

    def set_state(self, state: Any) -> None:
        """Takes the byte order."""
        self.byte_order = state[1]


class NumpyArray:
    """An array whose content arrives after its construction (``ndarray.__reduce__``)."""

    content: ByteArray | None = None

    def set_state(self, state: Any) -> None:
        """Takes the content."""
        _, shape, dtype, fortran, data = state
        self.content = ByteArray(data, dtype, shape, fortran is True)


class Global(NamedTuple):
    """A class or function that a pickle names."""

    name: str


class Unpickled(NamedTuple):
    """An object of Python's plain types and this module's stand-ins, and its storages by key."""

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
# NumPy 2 renamed its private package; files of both generations are around.
for _core in ("numpy.core", "numpy._core"):
    _CONSTRUCTORS |= {
        f"{_core}.multiarray._reconstruct": lambda *_: NumpyArray(),
        f"{_core}.multiarray.scalar": lambda dtype, data: ByteArray(data, dtype, ()),
        f"{_core}.numeric._frombuffer": _numpy_buffer,
    }
for _element in ("bool", "int", "double", "tensor"):
    _CONSTRUCTORS[f"torch.jit._pickle.build_{_element}list"] = _list

_HINTS = {
    "dnnlib.tflib.network.Network": "; this is a TensorFlow StyleGAN2 file, take NVIDIA's PyTorch "
    "version of it (stylegan2-ada-pytorch) or rosinality's conversion",
}


def _read_string(file: BinaryIO) -> str:
    """As the reader of pickletools, but for strings of Python 2 too, which are bytes."""
    return codecs.escape_decode(pickletools.read_stringnl(file, decode=False))[0].decode("latin1")


_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    opcode.name: cast(Any, opcode.arg).reader for opcode in pickletools.opcodes if opcode.arg
}
_READERS["STRING"] = _read_string


class Reader:
    """Reads the pickles of one file.

    Args:
        name: What to call the file in error messages.
    """

    def __init__(self, name: str):
        self.name = name
        self._opcodes = 0

    def load(self, file: BinaryIO) -> Unpickled:
        """Reads the next pickle of a stream.

        Args:
            file: Positioned at the pickle, and left behind it.

        Raises:
            InputError: The pickle calls something that is not allowed (never executed; the message
                names it), is truncated or damaged, or has more opcodes than any checkpoint.
        """
        try:
            return self._run(_Machine(self.name), file)
        except InputError:
            raise
        except _MALFORMED as error:
            # Messages quote the stream, line breaks and control characters included.
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
                    f"{self.name} has more than {_MAX_OPCODES} opcodes; that is no checkpoint"
                )
            machine.step(opcode, argument)


class _Machine:
    """The stack, the objects that a pickle has numbered, and the storages it refers to."""

    def __init__(self, name: str):
        self.name = name
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._marked: list[list[Any]] = []
        self._numbered: dict[int, Any] = {}
        self._steps = 0

    def step(self, opcode: str, argument: Any) -> None:
        """Executes an opcode; their names and meanings are in the module pickletools."""
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
                # Whoever writes a pickle counts up.
                if not 0 <= argument <= self._steps:
                    raise ValueError(f"object {argument} comes too early")
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
        """Takes everything above the last mark off the stack."""
        items, self.stack = self.stack, self._marked.pop()
        return items

    def _find(self, module: Any, name: Any) -> Any:
        """Looks a global up in the list of allowed names."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a global has no name")
        if len(module) + len(name) > _MAX_NAME_LENGTH:
            raise ValueError(f"a global has a name of {len(module) + len(name)} characters")
        # As Python 2 called it.
        module = "builtins" if module == "__builtin__" else module
        qualified = f"{module}.{name}"
        allowed = qualified in _CONSTRUCTORS or qualified in _STORAGES
        if not allowed and not qualified.startswith("__torch__."):
            raise InputError(
                f"{self.name} is refused: its pickle calls {qualified!r}, which is neither a "
                f"tensor nor a plain container{_HINTS.get(qualified, '')}"
            )
        return Global(qualified)

    def _find_storage(self, identity: Any) -> Storage:
        """Resolves PyTorch's ``('storage', type, key, location, size[, view])``."""
        if not isinstance(identity, tuple) or len(identity) > _MAX_ARGUMENTS:
            raise TypeError("a persistent id is no tuple")
        kind, storage, key, _, size, *view = identity
        if not (
            isinstance(kind, str)
            and kind == "storage"
            and isinstance(storage, Global)
            and isinstance(key, str)
            and len(key) <= _MAX_NAME_LENGTH
        ):
            raise pickle.UnpicklingError("a persistent id is no storage's")
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
        raise TypeError("a call of no function")
    if len(arguments) > _MAX_ARGUMENTS:
        raise TypeError(f"a call with {len(arguments)} arguments")
    if function.name.startswith("__torch__."):
        return Object()
    return _CONSTRUCTORS[function.name](*arguments)


def _pairs(items: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _extend(target: Any, items: Iterable[Any]) -> None:
    if not isinstance(target, list):
        raise TypeError(f"a {type(target).__name__} has no items to add to")
    target.extend(items)
