import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from ckpt_convert import formats, pickles
from styleclip_jax.errors import InputError


class Attack:
    """Creates the file ``canary`` when an ordinary unpickler loads it."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def zip_archive(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def legacy_stream(content):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def torchscript_archive(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(content, 2))
        archive.writestr("model/code/__torch__.py", "")
        archive.writestr("model/constants.pkl", pickle.dumps(()))
    return file.getvalue()


class Stored:
    """A tensor whose storage is pickled by value, as NVIDIA's are, with an attack inside."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        arguments = (_Storage(legacy_stream(self.content)), 0, (1,), (1,), False, {})
        return _rebuild_tensor_v2, arguments


class _Storage:
    def __init__(self, stream):
        self.stream = stream

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.stream,)


WRITERS = {
    "zip": zip_archive,
    "legacy": legacy_stream,
    "torchscript": torchscript_archive,
    "pickle 0": lambda content: pickle.dumps(content, 0),
    "pickle 2": lambda content: pickle.dumps(content, 2),
    "pickle 4": lambda content: pickle.dumps(content, 4),
    "storage": lambda content: pickle.dumps({"a": Stored(content)}),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_pickle_that_would_create_a_file_is_refused_by_name(writer, tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "weights.pt"
    path.write_bytes(writer({"state_dict": {"a": Attack(canary)}}))
    with pytest.raises(InputError, match=r"weights\.pt is refused.*'(posix|nt)\.system'"):
        formats.read(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "program"),
    {
        "GLOBAL": b"cbuiltins\neval\n(S'1'\ntR.",
        "INST": b"(S'1'\nibuiltins\neval\n.",
        "OBJ": b"\x80\x02(cbuiltins\neval\nS'1'\no.",
        "NEWOBJ": b"\x80\x02cbuiltins\neval\n)\x81.",
        "NEWOBJ_EX": b"\x80\x04cbuiltins\neval\n)}\x92.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        "Python 2": b"c__builtin__\neval\n(S'1'\ntR.",
    }.items(),
)
def test_no_opcode_reaches_a_forbidden_function(name, program):
    del name
    with pytest.raises(InputError, match=r"builtins\.eval"):
        pickles.Reader("weights.pt").load(io.BytesIO(program))


def test_the_extension_registry_reaches_no_forbidden_function():
    copyreg.add_extension("builtins", "eval", 250)
    try:
        with pytest.raises(InputError, match=r"EXT1 is not supported"):
            pickles.Reader("weights.pt").load(io.BytesIO(b"\x80\x02\x82\xfa."))
    finally:
        copyreg.remove_extension("builtins", "eval", 250)


@pytest.mark.parametrize(
    "name",
    [
        "torch._utils\n_rebuild_tensor_v2",
        "collections\nOrderedDict",
        "argparse\nNamespace",
        "numpy\ndtype",
        "torch\nFloatStorage",
    ],
)
def test_a_pickle_cannot_change_what_it_is_allowed_to_call(name):
    # BUILD with the state (None, {"__doc__": 1}) sets attributes on most objects.
    program = b"\x80\x02c" + name.encode() + b"\n(N}X\x07\x00\x00\x00__doc__K\x01stb."
    with pytest.raises(InputError, match="damaged"):
        pickles.Reader("weights.pt").load(io.BytesIO(program))


def test_neither_a_dotted_name_nor_an_attribute_bypasses_the_list():
    program = b"\x80\x04\x8c\x0ctorch._utils\x8c\x1b_rebuild_tensor.__globals__\x93."
    with pytest.raises(InputError, match="__globals__"):
        pickles.Reader("weights.pt").load(io.BytesIO(program))


def test_source_code_in_nvidias_pickles_is_never_run(nvidia_pickle, tmp_path):
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')"
    path = nvidia_pickle({"synthesis.b4.const": [1.0, 2.0]}, module_src=code)
    assert code.encode() in path.read_bytes()
    source = formats.read(path)
    assert source.tensors["G_ema.synthesis.b4.const"].tolist() == [1, 2]
    assert not canary.exists()


def test_a_tensorflow_network_is_refused_with_advice():
    program = b"\x80\x02cdnnlib.tflib.network\nNetwork\n)\x81."
    with pytest.raises(InputError, match=r"TensorFlow.*stylegan2-ada-pytorch"):
        pickles.Reader("stylegan2-ffhq-config-f.pkl").load(io.BytesIO(program))


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc",  # BINBYTES8 of 2^60 bytes
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"abc",  # BINUNICODE of 4 GiB
        b"\x80\x02.",
        b"\x80\x02}q\x00h\x05.",
        b"\x80\xff.",
        b"\x80\x02F1\n\x1b[2J\n.",
        b"\x80\x02" + b"(" * 100_000,
        b"\x80\x05\x96" + struct.pack("<Q", 2**31) + b"abc.",  # BYTEARRAY8 of 2 GiB
        b"\x80\x02]r\xff\xff\x0f\x00.",  # the object of number 2^20 after one of no number
        b"]p1000000\n.",
    ],
)
def test_a_damaged_pickle_prints_one_line(program):
    with pytest.raises(InputError) as error:
        pickles.Reader("weights.pt").load(io.BytesIO(program))
    message = str(error.value)
    assert "truncated or damaged" in message
    assert message.isprintable()


def test_classes_of_a_torchscript_archive_made_in_the_main_program_are_read():
    content, _ = pickles.Reader("weights.pt").load(io.BytesIO(b"\x80\x02c__torch__\nNet\n)\x81}b."))
    assert isinstance(content, pickles.Object)


def test_a_string_of_python_2_is_read():
    content, _ = pickles.Reader("weights.pt").load(io.BytesIO(b"(lp1\nS'\\xff'\np2\na."))
    assert content == ["\xff"]


def test_containers_that_hold_each_other_end_in_an_error(tmp_path):
    endless = []
    endless.append(endless)
    doubling = [0]
    for _ in range(64):
        doubling = [doubling, doubling]
    for content in (endless, doubling):
        path = tmp_path / "weights.pt"
        path.write_bytes(zip_archive(content))
        with pytest.raises(InputError, match="not a checkpoint"):
            formats.read(path)


def test_everything_is_read_without_pytorch(tmp_path, nvidia_pickle):
    weights = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    (tmp_path / "zip.pt").write_bytes(zip_archive(weights))
    (tmp_path / "legacy.pt").write_bytes(legacy_stream(weights))
    nvidia_pickle({"mapping.w_avg": [1.0, 2.0]})
    program = """
import sys
sys.modules["torch"] = None
import ckpt_convert.__main__
from ckpt_convert.formats import read
for path in sys.argv[1:3]:
    tensors = read(path).tensors
    assert tensors["a"].tolist() == [[0, 3], [1, 4], [2, 5]] and tensors["b"].tolist() == [1, 1]
assert read(sys.argv[3]).tensors["G_ema.mapping.w_avg"].tolist() == [1, 2]
assert not any(name.startswith("torch.") for name in sys.modules)
"""
    paths = [tmp_path / name for name in ("zip.pt", "legacy.pt", "network.pkl")]
    root = formats.__file__.split("ckpt_convert")[0]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, cwd=root)
