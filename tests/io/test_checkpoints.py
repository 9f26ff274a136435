import dataclasses
import hashlib
import json
import re
import shutil
import time
import types

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax import nnx
from jax.core import Tracer

from styleclip_jax.errors import InputError
from styleclip_jax.io import checkpoints
from styleclip_jax.io.checkpoints import (
    fingerprint,
    flatten,
    load_arcface,
    load_clip,
    load_generator,
    load_mapper,
    save_model,
)
from styleclip_jax.io.checksums import write_checksums
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.models import ArcFace, ArcFaceConfig, LevelsMapper, MapperCard, MapperConfig


def assert_same(model, other):
    assert type(model) is type(other) and model.config == other.config
    ours, theirs = flatten(model), flatten(other)
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_generator_is_read_back_exactly(generator, generator_path):
    loaded = load_generator(generator_path)
    assert_same(loaded, generator)
    w_plus = jax.random.normal(jax.random.key(0), (1, 6, 16))
    synthesize = jax.jit(type(generator).__call__)
    np.testing.assert_array_equal(synthesize(loaded, w_plus), synthesize(generator, w_plus))


def test_a_clip_is_read_back_exactly(clip, clip_path):
    assert_same(load_clip(clip_path), clip)


def test_a_configuration_with_tuples_is_read_back_exactly(random_model, tmp_path):
    arcface = random_model(ArcFace, ArcFaceConfig(stem_width=16, stages=((16, 1),)), seed=0)
    save_model(tmp_path / "arcface", arcface)
    loaded = load_arcface(tmp_path / "arcface")
    assert_same(loaded, arcface)
    assert hash(loaded.config) == hash(arcface.config)


def test_a_mapper_is_read_back_with_its_card(tmp_path):
    card = MapperCard("a hat", 0.2, "abc", {"steps": 3}, {"jax": "1"}, "2026-11-24")
    config = MapperConfig(w_dim=4, num_layers=6, card=card)
    save_model(tmp_path / "mapper", LevelsMapper(config, rngs=nnx.Rngs(0)))
    loaded = load_mapper(tmp_path / "mapper").config
    assert loaded.card == card
    assert loaded == dataclasses.replace(config, card=MapperCard())


@pytest.mark.parametrize("card", [{"strength": "much"}, {"colour": "red"}, {"settings": 3}, 3])
def test_a_damaged_card_is_refused(tmp_path, without_type_checks, card):
    path = tmp_path / "mapper"
    save_model(path, LevelsMapper(MapperConfig(w_dim=4, num_layers=6), rngs=nnx.Rngs(0)))
    described = json.loads((path / "config.json").read_text())
    described["config"]["card"] = card
    (path / "config.json").write_text(json.dumps(described))
    write_checksums(epath.Path(path))
    with pytest.raises(InputError, match="does not describe a LevelsMapper"):
        load_mapper(path)


def test_a_fingerprint_is_that_of_the_arrays_a_model_has_now(generator):
    copy = jax.tree.map(jnp.copy, generator)
    assert fingerprint(copy) == fingerprint(generator) == fingerprint(copy)
    copy.mean_w[...] = copy.mean_w[...] + 1
    assert fingerprint(copy) != fingerprint(generator)
    assert len(fingerprint(copy)) == 64


def test_parameters_stored_in_half_precision_are_read_in_single(generator, tmp_path):
    save_model(tmp_path / "half", generator, dtype=jnp.float16)
    ours, loaded = flatten(generator), flatten(load_generator(tmp_path / "half"))
    for name, array in loaded.items():
        assert array.dtype == jnp.float32
        np.testing.assert_array_equal(array, ours[name].astype(jnp.float16).astype(jnp.float32))


def test_bfloat16_is_for_arithmetic_and_not_for_parameters(generator_path):
    generator = load_generator(generator_path, jnp.bfloat16)
    assert generator.synthesis.convs[0].dtype == jnp.bfloat16
    assert all(array.dtype == jnp.float32 for array in flatten(generator).values())


def test_loading_runs_no_initializer(generator_path, clip_path, monkeypatch):
    normal = jax.random.normal

    def traced_normal(*arguments, **options):
        values = normal(*arguments, **options)
        assert isinstance(values, Tracer)
        return values

    monkeypatch.setattr(jax.random, "normal", traced_normal)
    load_generator(generator_path)
    load_clip(clip_path)


def test_parameters_do_not_pass_through_a_device_on_their_way_to_the_host(
    generator, generator_path, monkeypatch
):
    restore = ocp.StandardCheckpointer.restore
    restored = {}

    def recorded(*arguments, **options):
        restored.update(restore(*arguments, **options))
        return restored

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", recorded)
    assert_same(load_generator(generator_path), generator)
    assert restored and all(type(array) is np.ndarray for array in restored.values())


def test_an_existing_directory_is_not_overwritten(generator, generator_path):
    before = sorted(generator_path.rglob("*"))
    with pytest.raises(InputError, match="already exists"):
        save_model(generator_path, generator)
    assert sorted(generator_path.rglob("*")) == before


def test_a_full_disk_is_reported_in_one_line(generator, tmp_path, monkeypatch):
    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand so on")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    with pytest.raises(OSError, match=r"full cannot be written \(.*No space left on device\)$"):
        save_model(tmp_path / "full", generator)


@pytest.mark.parametrize("where", ["parameters", "tokenizer", "configuration"])
def test_an_unfinished_checkpoint_does_not_load(clip, tmp_path, monkeypatch, where):
    def crash(*_, **__):
        raise KeyboardInterrupt

    class Unfinished(dict):
        def items(self):
            yield "vocab.json", b"{}"
            crash()

    tokenizer_files = {"vocab.json": b"{}"}
    if where == "parameters":
        monkeypatch.setattr(ocp.StandardCheckpointer, "save", crash)
    elif where == "tokenizer":
        tokenizer_files = Unfinished(tokenizer_files)
    else:
        # Only our config.json: Orbax also writes JSON, and earlier.
        broken = types.SimpleNamespace(dumps=crash, loads=json.loads)
        monkeypatch.setattr(checkpoints, "json", broken)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "clip", clip, tokenizer_files)
    assert (tmp_path / "clip" / "parameters").exists() == (where != "parameters")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_clip(tmp_path / "clip")


def test_a_missing_directory_is_refused_with_advice(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.*ckpt_convert"):
        load_generator(tmp_path / "nowhere")


def test_a_file_is_refused_with_advice(tmp_path):
    (tmp_path / "ffhq.pkl").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a file.*ckpt_convert"):
        load_generator(tmp_path / "ffhq.pkl")


def test_another_kind_of_model_is_refused_by_name(generator_path, clip_path):
    with pytest.raises(InputError, match="holds a CLIP, expected a Generator"):
        load_generator(clip_path)
    with pytest.raises(InputError, match="holds a Generator, expected a CLIP"):
        load_clip(generator_path)


@pytest.fixture
def damaged(generator_path, tmp_path):
    """A copy of the generator's checkpoint."""
    return shutil.copytree(generator_path, tmp_path / "damaged")


def test_a_kind_of_model_that_does_not_exist_is_refused(damaged):
    (damaged / "config.json").write_text('{"model": ["Generator"], "config": {}}')
    with pytest.raises(InputError, match=r"holds a \['Generator'\], expected a Generator"):
        load_generator(damaged)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        '{"model": "Generator"}',
    ],
)
def test_a_damaged_configuration_is_refused(damaged, content):
    (damaged / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load_generator(damaged)


@pytest.mark.parametrize(
    "config",
    [
        {"colour": "red"},
        {"resolution": 48},
        {"resolution": "large"},
        {"mapping_layers": "two"},
        {"mapping_layers": 10**9},
        {"w_dim": None},
        {"mapping_lr_multiplier": 0},
        [],
        None,
    ],
)
def test_a_configuration_of_no_architecture_is_refused(damaged, config, monkeypatch):
    # Users have no run-time type checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    (damaged / "config.json").write_text(json.dumps({"model": "Generator", "config": config}))
    write_checksums(epath.Path(damaged))
    with pytest.raises(InputError, match="does not describe a Generator"):
        load_generator(damaged)


def test_a_configuration_that_does_not_fit_the_parameters_is_refused(damaged, generator):
    config = dataclasses.asdict(generator.config) | {"w_dim": 24}
    (damaged / "config.json").write_text(json.dumps({"model": "Generator", "config": config}))
    write_checksums(epath.Path(damaged))
    with pytest.raises(InputError, match=r"cannot be read.*do not match config\.json"):
        load_generator(damaged)


def test_truncated_parameters_are_refused(damaged):
    files = [f for f in (damaged / "parameters").rglob("*") if f.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_generator(damaged)


def test_zeroed_parameters_are_refused_before_orbax_reads_them(damaged):
    files = [f for f in (damaged / "parameters").rglob("*") if f.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))
    with pytest.raises(InputError, match=r"cannot be read: parameters/.* is damaged") as error:
        load_generator(damaged)
    assert "\n" not in str(error.value)
    # Orbax would close its event loop while reading, which raises "Event loop is closed".
    time.sleep(0.5)


def flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_refused(clip_path, tmp_path):
    copy, random = shutil.copytree(clip_path, tmp_path / "copy"), np.random.default_rng(0)
    files = [f for f in sorted(copy.rglob("*")) if f.stat().st_size and f.is_file()]
    assert {"config.json", "SHA256SUMS", "vocab.json"} < {file.name for file in files}
    for file in files:
        for _ in range(3):
            where = int(random.integers(file.stat().st_size)), int(random.integers(8))
            flip(file, *where)
            with pytest.raises(InputError) as error:
                load_clip(copy)
            assert "\n" not in str(error.value)
            flip(file, *where)
    assert_same(load_clip(copy), load_clip(clip_path))


def test_a_flipped_bit_of_a_tokenizer_is_refused(clip_path, tmp_path):
    copy = shutil.copytree(clip_path, tmp_path / "copy")
    for name in ("vocab.json", "merges.txt"):
        flip(copy / "tokenizer" / name, 8, 0)
        with pytest.raises(InputError, match=rf"tokenizer/{name} is damaged"):
            load_tokenizer(copy)
        flip(copy / "tokenizer" / name, 8, 0)
    load_tokenizer(copy)


def test_a_checkpoint_that_lost_its_checksums_is_refused(damaged):
    (damaged / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="SHA256SUMS is missing"):
        load_generator(damaged)


def test_a_checkpoint_from_before_there_were_checksums_is_read(damaged, generator):
    (damaged / "SHA256SUMS").unlink()
    described = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(described | {"sizes": {"_METADATA": 1}}))
    assert_same(load_generator(damaged), generator)


def test_sha256sum_can_check_a_checkpoint(clip_path):
    lines = (clip_path / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = [f for f in clip_path.rglob("*") if f.is_file() and f.name != "SHA256SUMS"]
    assert listed == {
        str(f.relative_to(clip_path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files
    }


def test_missing_parameters_are_refused(damaged):
    shutil.rmtree(damaged / "parameters")
    with pytest.raises(InputError, match="cannot be read"):
        load_generator(damaged)


def test_unknown_files_are_ignored(generator, generator_path, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(generator_path, copy)
    (copy / "parameters" / ".DS_Store").write_bytes(b"x")
    assert_same(load_generator(copy), generator)


@pytest.mark.parametrize("load", [load_generator, load_clip, load_tokenizer])
def test_an_empty_path_is_not_the_default(load):
    with pytest.raises(InputError):
        load("")


@pytest.mark.parametrize(
    ("path", "package"),
    [("gs://bucket", "styleclip-jax[gcs]"), ("s3://bucket", "etils[epath-s3]")],
)
def test_a_path_whose_file_system_needs_a_package_names_it(generator, monkeypatch, path, package):
    def missing(*_):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(epath.Path(path)), "exists", missing)
    for use in (load_generator, load_mapper, load_tokenizer, lambda p: save_model(p, generator)):
        with pytest.raises(
            InputError, match=re.escape(f"(Please install gcsfs); run pip install '{package}'")
        ):
            use(path)


@pytest.mark.parametrize("path", ["https://example.com/ffhq", "no-such-scheme://ffhq"])
def test_a_url_is_refused_with_advice(path):
    with pytest.raises(InputError, match="download it first"):
        load_generator(path)


def test_unknown_users_and_cycles_of_links_are_refused(generator, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for use in (load_generator, load_mapper, load_tokenizer, lambda p: save_model(p, generator)):
        with pytest.raises(InputError, match="no such user"):
            use("~no-such-user/ffhq")
        with pytest.raises((InputError, OSError)):
            use(tmp_path / "link" / "ffhq")


def test_a_run_without_a_validation_has_no_mapper_yet(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "flags.json").write_text("{}")
    with pytest.raises(InputError, match="no mapper yet; wait for its first validation"):
        load_mapper(tmp_path)


# Tensorstore's threads may report the event loop that Orbax has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_model_that_does_not_fit_on_the_disk_leaves_no_part(random_model, tmp_path, full_disk):
    config = ArcFaceConfig(image_size=16, stem_width=64, stages=((64, 1),))
    with pytest.raises(OSError, match=r"arcface cannot be written \(.*File too large"):
        save_model(tmp_path / "arcface", random_model(ArcFace, config, seed=3))
    assert not [*tmp_path.iterdir()]
