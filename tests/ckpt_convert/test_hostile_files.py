"""Small files that once hung a reader or took the machine's memory.

They are read in a separate process with limited memory and time.
"""

import functools
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from ckpt_convert.legacy import MAGIC

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, pathlib, resource, sys, time
from ckpt_convert import formats, tokenizers
from styleclip_jax.errors import InputError

# Enough for the test, too little to harm the machine.
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**32,) * 2)
for path in map(pathlib.Path, sys.argv[1:]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        tokenizers.read_tokenizer(path, 49408) if path.suffix == ".gz" else formats.read(path)
        refused = None
    except InputError as error:
        refused = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = time.process_time() - start
    print(json.dumps([path.name, refused, seconds, grown / 1024]), flush=True)
"""


def put(number):
    return b"r" + struct.pack("<I", number)


def get(number):
    return b"j" + struct.pack("<I", number)


def text(content):
    return b"X" + struct.pack("<I", len(content)) + content


def call(name, *arguments):
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def program(body):
    return b"\x80\x02" + body + b"."


# A tuple of twice the same tuple, and so on: 2^60 entries when printed.
DOUBLING = b")" + b"".join(put(i) + get(i) + b"\x86" for i in range(60))
NESTED = b")" + b"\x85" * 100_000
MEGABYTES = text(b"x" * 2**21)


def repeated(name, argument, *others, times=2000):
    """A list of the results of many calls with the same argument."""
    calls = (call(name, get(0), *others) + b"a" for _ in range(times))
    return program(b"]" + argument + put(0) + b"0" + b"".join(calls))


def colliding_keys():
    # Python's hash of an integer is its remainder by 2^61 - 1.
    keys = (i * (2**61 - 1) for i in range(1, 60_000))
    entries = (b"\x8a\x10" + key.to_bytes(16, "little") + b"N" for key in keys)
    return program(b"}(" + b"".join(entries) + b"u")


def serialized_storage(times):
    """Tensors that share a storage by value, which a reader could parse and copy for each."""
    stream = b"".join(pickle.dumps(x, 2) for x in (MAGIC, 1001, {}))
    identity = text(b"storage") + b"ctorch\nByteStorage\n" + text(b"0") + text(b"cpu")
    stream += program(b"(" + identity + b"J" + struct.pack("<i", 2**20) + b"tQ")
    stream += pickle.dumps(["0"], 2) + struct.pack("<Q", 2**20) + bytes(2**20)
    tensor = call(
        "torch._utils._rebuild_tensor",
        call("torch.storage._load_from_bytes", get(0)),
        b"K\x00",
        b"K\x01\x85",
        b"K\x01\x85",
    )
    data = b"\x80\x04\x8e" + struct.pack("<Q", len(stream)) + stream + put(0) + b"0"
    return data + b"](" + tensor * times + b"e."


def legacy_keys():
    header = b"".join(pickle.dumps(x, 2) for x in (MAGIC, 1001, {}, []))
    return header + program(b"]" + DOUBLING + b"a")


def zipped(**entries):
    """An archive of (method, size, compressed content), whose sizes and checksums may lie."""
    local, central = b"", b""
    for name, (method, size, content) in entries.items():
        path = f"a/{name.replace('__', '/').replace('_pkl', '.pkl')}".encode()
        sizes = zlib.crc32(content), len(content), size, len(path), 0
        fields = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 0, *sizes)
        central += b"PK\x01\x02" + struct.pack("<H", 20) + fields
        central += struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + path
        local += b"PK\x03\x04" + fields + path + content
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(central), len(local), 0)
    return local + central + b"PK\x05\x06" + end


def stored(content):
    return 0, len(content), content


@functools.cache
def inflating(size):
    """Zeros, deflated a thousandfold; pieces that end in a full flush can be repeated."""
    compressor, piece = zlib.compressobj(9, zlib.DEFLATED, -15), 2**24
    content = compressor.compress(bytes(piece)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return content * (size // piece) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def tensor(elements, stride):
    """A tensor of a storage with one element."""
    identity = text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x01"
    shape, strides = (b"J" + struct.pack("<i", n) + b"\x85" for n in (elements, stride))
    storage = b"(" + identity + b"tQ"
    return program(call("torch._utils._rebuild_tensor", storage, b"K\x00", shape, strides))


def table_of_contents(entries):
    """An archive of nothing but names."""
    path = b"a/000000"
    record = b"PK\x01\x02" + struct.pack("<H", 20)
    record += struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, 0, 0, len(path), 0)
    central = (record + struct.pack("<HHHII", 0, 0, 0, 0, 0) + path) * entries
    end = struct.pack("<HHHHIIH", 0, 0, 65535, 65535, len(central), 4, 0)
    return b"PK\x03\x04" + central + b"PK\x05\x06" + end


LARGE = 3 * 2**30
FILES = {
    "tuples as a key": lambda: program(b"}" + DOUBLING + b"Ns"),
    "tuples in a set": lambda: b"\x80\x04\x8f(" + DOUBLING + b"\x90.",
    "tuples in a frozen set": lambda: b"\x80\x04(" + DOUBLING + b"\x91.",
    "nested tuples as a key": lambda: program(b"}" + NESTED + b"Ns"),
    "tuples as keys of storages": legacy_keys,
    "tuples as a device": lambda: program(call("torch.device", DOUBLING)),
    "tuples as a persistent id": lambda: program(b"(" + DOUBLING + b"NNNNtQ"),
    "texts of devices": lambda: program(
        MEGABYTES + b"".join(put(i) + call("torch.device", get(i), get(i)) for i in range(14))
    ),
    "keys that collide": colliding_keys,
    "lists of a text": lambda: repeated("builtins.list", MEGABYTES),
    "tuples of a list": lambda: repeated("torch.Size", b"](" + b"N" * 300_000 + b"e"),
    "dictionaries of pairs": lambda: repeated(
        "collections.OrderedDict", b"](" + b"K\x00N\x86" * 100_000 + b"e"
    ),
    "encoded texts": lambda: repeated("_codecs.encode", MEGABYTES, text(b"latin1")),
    "long lists of arguments": lambda: program(
        b"](" + b"N" * 300_000 + b"e" + put(0) + b"0" + (b"ctorch\nSize\n" + get(0) + b"R0") * 9999
    ),
    "long names": lambda: program(
        b"".join(MEGABYTES[:5] + b"x" * 2**21 + put(i) + b"0" for i in range(2))
        + (get(0) + get(1) + b"\x93") * 2000
    ),
    "a storage by value in many tensors": lambda: serialized_storage(10_000),
    "many opcodes": lambda: program(b"N0" * 5_000_000 + b"N"),
    "an endless integer": lambda: program(
        b"}\x8b" + struct.pack("<I", 2**20) + b"x" * 2**20 + b"Ns"
    ),
    "a broadcast tensor": lambda: zipped(
        data_pkl=stored(tensor(2**30, 0)), data__0=stored(bytes(4))
    ),
    "an inflated pickle": lambda: zipped(data_pkl=(8, LARGE, inflating(LARGE))),
    "an inflated storage": lambda: zipped(
        data_pkl=stored(tensor(1, 1)), data__0=(8, LARGE, inflating(LARGE))
    ),
    "an inflated byte order": lambda: zipped(
        data_pkl=stored(program(b"}")), byteorder=(8, LARGE, inflating(LARGE))
    ),
    "a storage that inflates beyond its size": lambda: zipped(
        data_pkl=stored(tensor(1, 1)), data__0=(8, 4, inflating(LARGE))
    ),
    "an archive of names": lambda: table_of_contents(500_000),
    "vocabulary.gz": lambda: b"\x1f\x8b\x08\x00" + bytes(6) + inflating(LARGE) + bytes(8),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Message, seconds of processor time and megabytes of every file."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in FILES.items():
        (folder / name).write_bytes(content())
    os.mkfifo(folder / "pipe")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(folder / name for name in [*FILES, "pipe"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not done.returncode, done.stderr
    return {name: outcome for name, *outcome in map(json.loads, done.stdout.splitlines())}


# Only names and numbers of an object are read.
HARMLESS = {
    *("tuples as a key", "nested tuples as a key", "keys that collide", "lists of a text"),
    *("tuples as a device", "texts of devices", "tuples of a list", "encoded texts"),
    "a storage by value in many tensors",
}


@pytest.mark.parametrize("name", [*FILES, "pipe"])
def test_a_hostile_file_is_handled_quickly_in_little_memory(outcomes, name):
    message, seconds, megabytes = outcomes[name]
    assert seconds < 10
    assert megabytes < 1000
    if name not in HARMLESS:
        assert name in message
        assert "\n" not in message
        assert len(message) < 500
