import argparse
import io
import json
import pickle
import zipfile
from collections import OrderedDict, defaultdict

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch._utils import _rebuild_tensor, _rebuild_tensor_v2

from ckpt_convert import formats, legacy
from styleclip_jax.errors import InputError


class Rebuilt:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


def save_torchscript(_, path):
    torch.jit.save(torch.jit.script(Network()), path)


WRITERS = {"pytorch": save_zip, "pytorch legacy": save_legacy, "pickle": save_pickle}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    """Writes an object in each of PyTorch's pickled formats, under a neutral name."""

    def write(content):
        path = tmp_path / "download"
        WRITERS[request.param](content, path)
        source = formats.read(path)
        assert source.kind == request.param
        return source

    return write


def test_tensors_of_every_layout_are_read(written):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "plain": base,
        "transposed": base.transpose(0, 2),
        "part": base[1, 1:, ::2],
        "row": base[0, 1],
        "expanded": base[0, 0, :1].expand(3, 1),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 5),
        "single": torch.ones(1, 1, 2, 1),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    source = written({"state_dict": OrderedDict(tensors)})
    assert list(source.tensors) == [f"state_dict.{key}" for key in tensors]
    for key, tensor in tensors.items():
        found = source.tensors[f"state_dict.{key}"]
        assert found.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(found, tensor.numpy())


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]
)
def test_tensors_of_every_type_are_read(dtype, written):
    tensor = torch.tensor([0, 1, 100, -3]).to(getattr(torch, dtype))
    found = written([tensor]).tensors["0"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, tensor.numpy())


def test_bfloat16_is_read(written, tmp_path):
    tensor = torch.tensor([1.5, -2.0, 3e38], dtype=torch.bfloat16)
    save_file({"a": tensor}, tmp_path / "b")
    for found in (written({"a": tensor}).tensors["a"], formats.read(tmp_path / "b").tensors["a"]):
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found.astype(np.float32), tensor.float().numpy())


def test_parameters_and_a_state_dicts_metadata_are_read(written):
    layer = torch.nn.BatchNorm1d(3)
    source = written({"net": layer.state_dict(), "parameter": layer.weight})
    assert set(source.tensors) == {f"net.{key}" for key in layer.state_dict()} | {"parameter"}


def test_options_are_plain_values(written):
    options = argparse.Namespace(type="LevelsMapper", steps=3, rate=0.5, path=None, fine=False)
    counts = defaultdict(list, {1: 2})
    plain = {"opts": options, "counts": counts, "size": torch.Size([2, 3])}
    source = written(plain | {"nothing": argparse.Namespace()})
    assert source.values == {
        "opts.type": "LevelsMapper",
        "opts.steps": 3,
        "opts.rate": 0.5,
        "opts.path": None,
        "opts.fine": False,
        "counts.1": 2,
        "size.0": 2,
        "size.1": 3,
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_and_scalars_are_read(protocol, tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "big_endian": np.array([1, 2], ">f4"),
    }
    path = tmp_path / "arrays"
    path.write_bytes(pickle.dumps(arrays | {"scalar": np.float64(0.25)}, protocol))
    source = formats.read(path)
    assert source.values == {"scalar": 0.25}
    for key, array in arrays.items():
        np.testing.assert_array_equal(source.tensors[key], array)


def test_an_array_of_objects_is_refused(tmp_path):
    path = tmp_path / "arrays"
    path.write_bytes(pickle.dumps({"a": np.array([None, "x"], object)}))
    with pytest.raises(InputError, match="not an array of numbers"):
        formats.read(path)


def test_an_array_that_is_never_filled_is_refused_or_empty(tmp_path):
    path = tmp_path / "arrays"
    scalar = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n)\x81U\x01a\x86R"
    path.write_bytes(b"\x80\x02" + scalar + b".")
    with pytest.raises(InputError, match="not an array of numbers"):
        formats.read(path)
    path.write_bytes(b"\x80\x02cnumpy\nndarray\n)\x81.")
    assert not formats.read(path).tensors


def test_a_bare_tensor_and_a_list_are_read(written):
    assert list(written(torch.ones(2)).tensors) == [""]
    assert list(written([torch.ones(2), torch.ones(3)]).tensors) == ["0", "1"]


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_legacy_stream_with_views_of_storages_is_read(tmp_path):
    # PyTorch before 0.4: the persistent id refers to a part of a storage.
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, torch.storage.TypedStorage):
                return "storage", torch.FloatStorage, "0", "cpu", 6, ("1", 2, 4)
            return None

    file = io.BytesIO()
    for header in (legacy.MAGIC, 1001, {"little_endian": True}):
        pickle.dump(header, file, 2)
    storage = torch.ones(1).storage()
    geometry = (storage, 1, (3,), (1,))
    Pickler(file, 2).dump({"a": Rebuilt(_rebuild_tensor, *geometry)})
    pickle.dump(["0"], file, 2)
    file.write((6).to_bytes(8, "little") + np.arange(6, dtype="<f4").tobytes())
    (tmp_path / "a").write_bytes(file.getvalue())
    assert formats.read(tmp_path / "a").tensors["a"].tolist() == [3, 4, 5]


def test_an_archive_of_a_big_endian_machine_is_read(tmp_path):
    torch.save({"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([True])}, tmp_path / "little")
    with (
        zipfile.ZipFile(tmp_path / "little") as little,
        zipfile.ZipFile(tmp_path / "big", "w") as big,
    ):
        for name in little.namelist():
            content = little.read(name)
            if name.endswith("/byteorder"):
                content = b"big"
            elif name.endswith("/data/0"):
                content = np.frombuffer(content, "<f4").astype(">f4").tobytes()
            big.writestr(name, content)
    tensors = formats.read(tmp_path / "big").tensors
    assert tensors["a"].tolist() == [1, 2.5]
    assert tensors["b"].tolist() == [True]


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("input_resolution", torch.tensor(224))
        self.unused = 5

    def forward(self, x):
        return self.visual(x) * self.scale


@pytest.mark.parametrize(
    "compile_network",
    [torch.jit.script, lambda network: torch.jit.trace(network, torch.ones(1, 3))],
    ids=["script", "trace"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archives_tensors_have_the_state_dicts_names(compile_network, tmp_path):
    network = compile_network(Network()).half()
    torch.jit.save(network, tmp_path / "a")
    source = formats.read(tmp_path / "a")
    assert source.kind == "torchscript"
    expected = network.state_dict()
    assert set(source.tensors) == set(expected)
    for key, tensor in expected.items():
        np.testing.assert_array_equal(source.tensors[key], tensor.numpy())


def test_safetensors_are_read(tmp_path):
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a")
    source = formats.read(tmp_path / "a")
    assert source.kind == "safetensors"
    np.testing.assert_array_equal(source.tensors["a"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_hugging_face_directory_is_read_with_its_configuration(weights, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    save = save_file if weights == "model.safetensors" else torch.save
    save({"a": torch.ones(2)}, tmp_path / weights)
    source = formats.read(tmp_path)
    assert source.config == {"model_type": "clip"}
    assert source.tensors["a"].tolist() == [1, 1]


def test_nvidias_modules_give_state_dict_names_and_attributes(nvidia_pickle):
    path = nvidia_pickle(
        {"synthesis.b4.conv1.weight": np.ones((2, 2)), "mapping.w_avg": np.zeros(3)},
        {"synthesis.b4.conv1.conv_clamp": 256, "_init_kwargs": {"z_dim": 512}},
    )
    source = formats.read(path)
    assert source.kind == "pickle"
    assert source.tensors["G_ema.synthesis.b4.conv1.weight"].shape == (2, 2)
    assert source.tensors["G_ema.mapping.w_avg"].shape == (3,)
    assert source.values["G_ema.synthesis.b4.conv1.conv_clamp"] == 256
    assert source.values["G_ema._init_kwargs.z_dim"] == 512


@pytest.mark.parametrize("kind", [*WRITERS, "safetensors", "torchscript"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_truncated_file_is_refused_wherever_it_ends(kind, tmp_path):
    whole = tmp_path / "whole"
    if kind == "torchscript":
        save_torchscript(None, whole)
    else:
        (WRITERS | {"safetensors": save_file})[kind](
            {"a": torch.ones(50), "b": torch.ones(3)}, whole
        )
    content = whole.read_bytes()
    formats.read(whole)
    path = tmp_path / "part"
    for length in {1, 4, 8, 12, len(content) - 1, *range(0, len(content), len(content) // 40)}:
        path.write_bytes(content[:length])
        with pytest.raises(InputError) as error:
            formats.read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def view(offset, shape, strides):
    """A tensor with any geometry, on a storage of six elements."""
    storage = torch.arange(6.0).storage()
    arguments = (storage, offset, shape, strides, False, OrderedDict())
    return Rebuilt(_rebuild_tensor_v2, *arguments)


@pytest.mark.filterwarnings("ignore:TypedStorage", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [*WRITERS, "safetensors", "torchscript", "nvidia"])
def test_damaged_bytes_are_refused_or_make_no_difference_to_the_reader(
    kind, tmp_path, nvidia_pickle, capfd
):
    path, random = tmp_path / "download", np.random.default_rng(0)
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.int64)}
    if kind == "nvidia":
        attributes = {"b4.conv1.conv_clamp": 256, "_init_kwargs": {"z_dim": 512}}
        path = nvidia_pickle({"b4.conv1.weight": np.ones((2, 2))}, attributes)
    else:
        writers = WRITERS | {"safetensors": save_file, "torchscript": save_torchscript}
        writers[kind](tensors, path)
    content, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(content)
        for position in random.integers(len(damaged), size=random.integers(1, 4)):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        try:
            formats.read(path)
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 30
    assert not capfd.readouterr().err


def test_an_object_that_is_its_own_state_has_no_tensors(tmp_path):
    path = tmp_path / "download"
    path.write_bytes(b"\x80\x02cargparse\nNamespace\n)\x81q\x00h\x00b.")
    assert not formats.read(path).tensors


def test_an_array_of_one_byte_floats_is_refused(tmp_path):
    path = tmp_path / "download"
    path.write_bytes(pickle.dumps(np.ones(3, "f2"), protocol=2).replace(b"f2", b"f1"))
    with pytest.raises(InputError, match="not an array of numbers"):
        formats.read(path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (6, (1,), (1,)),
        (1, (2, 3), (3, 1)),
        (-1, (2,), (1,)),
        (5, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2**40,), (0,)),
        (0, (2**62, 0, 2**62), (1, 1, 1)),
        (2**80, (1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2.0,), (1,)),
        (0, 3, 1),
        ("0", (1,), (1,)),
        (0, (2,), (2**62,)),
    ],
)
def test_a_view_that_leaves_its_storage_is_refused(offset, shape, strides, written):
    with pytest.raises(InputError, match="'a'"):
        written({"a": view(offset, shape, strides)})


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_the_last_element_of_a_storage_can_be_seen(written):
    tensors = written({"a": view(5, (1,), (2**80,)), "b": view(1, (5,), (1,))}).tensors
    assert tensors["a"].tolist() == [5]
    assert tensors["b"].tolist() == [1, 2, 3, 4, 5]


def test_a_storage_shorter_than_its_tensor_is_refused(tmp_path):
    torch.save({"a": torch.ones(50)}, tmp_path / "whole")
    with (
        zipfile.ZipFile(tmp_path / "whole") as whole,
        zipfile.ZipFile(tmp_path / "short", "w") as short,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            short.writestr(name, content[:-4] if name.endswith("/data/0") else content)
    with pytest.raises(InputError, match="needs 50 elements"):
        formats.read(tmp_path / "short")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "unknown format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "unknown format"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        formats.read(path)


def test_other_archives_and_directories_are_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    (tmp_path / "a.pt").write_bytes(file.getvalue())
    with pytest.raises(InputError, match="not a PyTorch file"):
        formats.read(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"without model\.safetensors"):
        formats.read(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        formats.read(tmp_path / "missing.pt")


def test_a_damaged_configuration_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    for content in ("{", "[]", '{"a":' * 100_000):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"config\.json"):
            formats.read(tmp_path)
