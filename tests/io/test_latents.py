import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from styleclip_jax.errors import InputError
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.io.photos import read_photo


def test_w_plus_latents_are_read_back_exactly(generator, w_plus, tmp_path):
    save_latents(tmp_path / "faces", w_plus)
    loaded = load_latents(tmp_path / "faces.npy", generator)
    assert jax.tree.leaves(loaded)[0].dtype == jnp.float32
    np.testing.assert_array_equal(loaded, w_plus)


def test_stylespace_coordinates_are_read_back_exactly_and_in_order(generator, styles, tmp_path):
    save_latents(tmp_path / "faces", styles)
    loaded = load_latents(tmp_path / "faces.npz", generator)
    assert len(loaded) == len(styles) == 8
    for one, other in zip(loaded, styles, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["faces.npy", "faces"])
def test_the_suffix_may_be_omitted(w_plus, tmp_path, name):
    save_latents(tmp_path / name, w_plus)
    assert [path.name for path in tmp_path.iterdir()] == ["faces.npy"]


def test_the_suffix_of_the_other_kind_is_refused(w_plus, styles, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.npz, expected \.npy for W\+"):
        save_latents(tmp_path / "faces.npz", w_plus)
    with pytest.raises(InputError, match=r"ends in \.npy, expected \.npz for StyleSpace"):
        save_latents(tmp_path / "faces.npy", styles)
    assert not list(tmp_path.iterdir())


def test_double_precision_is_accepted(generator, w_plus, tmp_path):
    np.save(tmp_path / "faces.npy", np.asarray(w_plus, np.float64))
    loaded = load_latents(tmp_path / "faces.npy", generator)
    assert jax.tree.leaves(loaded)[0].dtype == jnp.float32


def test_loaded_latents_stay_when_the_file_changes(generator, w_plus, tmp_path):
    save_latents(tmp_path / "faces", w_plus)
    loaded = load_latents(tmp_path / "faces.npy", generator)
    np.load(tmp_path / "faces.npy", mmap_mode="r+")[:] = 0
    np.testing.assert_array_equal(loaded, w_plus)


def test_a_large_file_of_another_shape_is_refused_without_being_read(generator, tmp_path):
    path, shape = tmp_path / "large.npy", (2**20, 2**9, 2**9)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        # A sparse file of a terabyte.
        file.truncate(file.tell() + 4 * math.prod(shape))
    with pytest.raises(InputError, match="for this generator"):
        load_latents(path, generator)


def test_a_failed_write_leaves_the_old_file(generator, w_plus, tmp_path, monkeypatch):
    save_latents(tmp_path / "faces", w_plus)

    def crash(file, _):
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "save", crash)
    with pytest.raises(OSError, match=r"faces\.npy cannot be written \(the disk is full\)"):
        save_latents(tmp_path / "faces", w_plus + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["faces.npy"]
    np.testing.assert_array_equal(load_latents(tmp_path / "faces.npy", generator), w_plus)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 7, 16), np.float32), r"\(1, 7, 16\), expected \(N, 6, 16\)"),
        (np.zeros((6, 16), np.float32), r"\(6, 16\), expected \(N, 6, 16\)"),
        (np.zeros((0, 6, 16), np.float32), "empty"),
        (np.zeros((1, 6, 16), np.int32), "int32, expected floating-point"),
        (np.full((1, 6, 16), np.nan, np.float32), "NaN"),
        (np.full((1, 6, 16), np.inf, np.float32), "infinite"),
        (np.full((1, 6, 16), 1e300), "infinite"),
    ],
)
def test_arrays_that_do_not_match_the_generator_are_refused(generator, tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(InputError, match=message):
        load_latents(tmp_path / "bad.npy", generator)


def change_width(arrays):
    arrays["layer_03"] = arrays["layer_03"][:, 1:]


def change_count(arrays):
    arrays["layer_03"] = arrays["layer_03"][1:]


def put_nan(arrays):
    arrays["layer_07"][0, 0] = np.nan


def drop_one(arrays):
    del arrays["layer_00"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_width, r"layer_03 has shape \(3, 7\), expected \(N, 8\)"),
        (change_count, "latents per layer"),
        (put_nan, "layer_07 has NaN"),
        (drop_one, "7 arrays layer_01, ..., layer_07.*8 StyleSpace arrays"),
    ],
)
def test_stylespace_files_that_do_not_match_are_refused(
    generator, styles, tmp_path, damage, message
):
    arrays = {f"layer_{i:02}": np.array(style) for i, style in enumerate(styles)}
    damage(arrays)
    np.savez(tmp_path / "bad.npz", allow_pickle=False, **arrays)
    with pytest.raises(InputError, match=message):
        load_latents(tmp_path / "bad.npz", generator)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY", b"PK\x03\x04garbage"])
def test_garbage_is_refused(generator, tmp_path, content):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(InputError, match="has no latents or is damaged"):
        load_latents(tmp_path / "bad.npy", generator)


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated_files_are_refused(generator, w_plus, styles, tmp_path, kind, kept):
    save_latents(tmp_path / "bad", w_plus if kind == "npy" else styles)
    path = tmp_path / f"bad.{kind}"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match="damaged"):
        load_latents(path, generator)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_file_damaged_anywhere_is_refused_or_read(generator, w_plus, styles, tmp_path, kind):
    save_latents(tmp_path / "faces", w_plus if kind == "npy" else styles)
    content, refused = (tmp_path / f"faces.{kind}").read_bytes(), 0
    for position in [*range(0, 128), *range(128, len(content), len(content) // 100)]:
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            load_latents(tmp_path / "damaged", generator)
        except InputError:
            refused += 1
    assert refused > 20


class Attack:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(generator, tmp_path, kind):
    canary, path = tmp_path / "canary", tmp_path / f"bad.{kind}"
    attack = np.array([Attack(canary)], object)
    if kind == "npy":
        np.save(path, attack)
    elif kind == "npz":
        np.savez(path, allow_pickle=True, **{f"layer_{i:02}": attack for i in range(8)})
    else:
        attack.dump(path)
    with pytest.raises(InputError, match="damaged"):
        load_latents(path, generator)
    assert not canary.exists()
    # An ordinary reader would have run the code.
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=True)
        if kind == "npz":
            content["layer_00"]
    assert canary.exists()


def test_a_missing_file_and_a_directory_are_refused(generator, tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.npy"):
        load_latents(tmp_path / "nowhere.npy", generator)
    with pytest.raises(InputError, match="is a directory"):
        load_latents(tmp_path, generator)


@pytest.mark.parametrize("kind", ["latents", "photo"])
def test_a_pipe_is_refused_without_waiting(generator, tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        if kind == "latents":
            load_latents(tmp_path / "pipe", generator)
        else:
            read_photo(tmp_path / "pipe")


def test_unknown_users_and_cycles_of_links_are_refused(generator, tmp_path):
    with pytest.raises(InputError, match="no such user"):
        load_latents("~no-such-user/faces.npy", generator)
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(InputError, match="no file"):
        load_latents(tmp_path / "link" / "faces.npy", generator)


def test_a_small_archive_cannot_inflate_beyond_memory(generator, styles, tmp_path):
    arrays = {f"layer_{i:02}": np.asarray(style) for i, style in enumerate(styles)}
    arrays["layer_00"] = np.zeros((2**20, 80), np.float32)
    np.savez_compressed(tmp_path / "faces.npz", allow_pickle=False, **arrays)
    assert (tmp_path / "faces.npz").stat().st_size < 2**19
    with pytest.raises(InputError, match="contents are far larger than the file"):
        load_latents(tmp_path / "faces.npz", generator)
