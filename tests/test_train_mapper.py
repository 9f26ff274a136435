import contextlib
import importlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from PIL import Image

from styleclip_jax.io.checkpoints import (
    fingerprint,
    flatten,
    load_generator,
    load_mapper,
    save_model,
)
from styleclip_jax.io.latents import save_latents
from styleclip_jax.latents import sample_latents
from styleclip_jax.methods import linear_start, mapper_editing, mapper_training
from styleclip_jax.methods.linear_start import sample_features
from styleclip_jax.models import ArcFace, ArcFaceConfig, LevelsMapper
from styleclip_jax.runs.experiment import Measurements, claim
from tests.ports import free_port
from tests.programs import collectives, dump_programs, read_train_steps

ROOT = Path(__file__).parents[1]
STEPS = 20
# These random networks have small gradients, with which Ranger takes tiny steps.
FLAGS = {
    "description": "a person with a beard",
    "batch_size": 4,
    "learning_rate": 1e3,
    "max_steps": STEPS,
    "val_interval": 8,
    "save_interval": 4,
    "log_interval": 5,
    "image_interval": 20,
    "train_dataset_size": 18,
    "test_dataset_size": 9,
}


def arguments(flags: dict) -> list[str]:
    """The flags as on a command line; those that are None are left out."""
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.fixture(scope="session")
def arcface_path(random_model, tmp_path_factory) -> Path:
    """The checkpoint of a random ArcFace of one block."""
    path = tmp_path_factory.mktemp("checkpoints") / "arcface"
    config = ArcFaceConfig(image_size=16, stem_width=16, stages=((16, 1),))
    save_model(path, random_model(ArcFace, config, seed=3))
    return path


@pytest.fixture(scope="session")
def networks(generator_path, clip_path) -> dict[str, Path]:
    """The flags that name the networks."""
    return {"generator": generator_path, "clip": clip_path}


@pytest.fixture(scope="session")
def start(networks):
    """Starts train_mapper.py in a process of its own."""

    def start(run: Path, devices: int = 1, prefix=(), xla="", **changes) -> subprocess.Popen:
        flags = networks | {"exp_dir": run} | FLAGS | changes
        xla += f" --xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [*prefix, sys.executable, "train_mapper.py", *arguments(flags)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {xla}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for the process; returns what it wrote to standard error."""
    _, errors = process.communicate(timeout=500)
    assert process.returncode == code, errors
    return errors


@pytest.fixture(scope="session")
def uninterrupted(run_main, networks, tmp_path_factory) -> Path:
    """A run from the first step to the last."""
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = run_main("train_mapper.py", *arguments(networks | FLAGS | {"exp_dir": directory}))
    assert code == 0, errors.getvalue()
    return directory


def measurements(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def tensorboard(directory: Path) -> dict[tuple[str, int], float | None]:
    """What TensorBoard shows, by name and step: numbers, and None for images."""
    event_class = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    shown = {}
    for path in (directory / "tensorboard").iterdir():
        content = path.read_bytes()
        while content:
            # A record is its length in 8 bytes, a checksum in 4, the event, and a checksum.
            length = int.from_bytes(content[:8], "little")
            event = event_class.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                is_image = value.HasField("image")
                shown[value.tag, event.step] = None if is_image else value.simple_value
    return shown


def last_state(directory: Path) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory / "checkpoints" / str(STEPS) / "state")


def mapper_parameters(directory: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in flatten(load_mapper(directory)).items()}


def assert_same_bits(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


def wait_for_lines(directory: Path, count: int, *processes: subprocess.Popen) -> None:
    """Until the run has recorded so many measurements."""
    log, deadline = directory / "metrics.jsonl", time.monotonic() + 400
    while not log.exists() or log.read_text().count("\n") < count:
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_step(directory: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has recorded a step and has at least one checkpoint."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        log, checkpoints = directory / "metrics.jsonl", directory / "checkpoints"
        written = log.exists() and f'"step": {step}, "split": "train"' in log.read_text()
        if written and any(path.name.isdigit() for path in checkpoints.iterdir()):
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


@pytest.fixture
def train(run_script, networks, tmp_path):
    """Runs train_mapper.py in this process; flags may be overridden."""

    def train(**changes):
        flags = networks | {"exp_dir": tmp_path / "run"} | FLAGS | changes
        return run_script("train_mapper.py", *arguments(flags))

    return train


@pytest.fixture
def copied(uninterrupted, tmp_path) -> Path:
    """A copy of the uninterrupted run, in the directory that `train` uses."""
    return shutil.copytree(uninterrupted, tmp_path / "run")


@pytest.fixture
def resume(train):
    """Resumes a run in this process; returns what it wrote to standard error."""

    def resume(directory: Path, **changes) -> str:
        outcome = train(**{"exp_dir": directory} | changes)
        assert outcome.code == 0, outcome.err
        return outcome.err

    return resume


def test_a_run_writes_mapper_measurements_images_and_flags(uninterrupted):
    lines = measurements(uninterrupted)
    steps = [(line["step"], line["split"]) for line in lines]
    assert steps == sorted(set(steps), key=lambda x: (x[0], x[1] == "validation"))
    assert {step for step, split in steps if split == "validation"} == {0, 8, 16, 20}
    assert {step for step, split in steps if split == "train"} == {5, 10, 15, 20}
    validation = [line["loss"] for line in lines if line["split"] == "validation"]
    assert min(validation) < validation[0] - 1e-3
    assert all(array.any() for array in mapper_parameters(uninterrupted).values())
    record = json.loads((uninterrupted / "config" / "flags.json").read_text())
    assert record["flags"]["description"] == FLAGS["description"] and "jax" in record["versions"]
    with Image.open(uninterrupted / "images" / "validation_000020.png") as image:
        assert image.width > image.height / 8 * 2
    saved = sorted(int(path.name) for path in (uninterrupted / "checkpoints").iterdir())
    best = (0, 8, 16, 20)[min(range(1, 4), key=validation.__getitem__)]
    assert saved == sorted({12, 16, 20, best})


def test_tensorboard_shows_the_same_numbers_and_images(uninterrupted):
    shown = tensorboard(uninterrupted)
    shown_images = {name for name, value in shown.items() if value is None}
    assert shown_images == {
        ("train", 20),
        *(("validation", step) for step in (8, 16, 20)),
    }
    numbers = {
        (f"{line['split']}/{name}", line["step"]): value
        for line in measurements(uninterrupted)
        for name, value in line.items()
        if name not in ("step", "split")
    }
    assert {"train/loss", "validation/clip_loss"} <= {name for name, _ in numbers}
    assert {name: shown[name] for name in shown.keys() - shown_images} == pytest.approx(numbers)


def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one(
    start, resume, uninterrupted, tmp_path
):
    directory = tmp_path / "run"
    process = start(directory)
    wait_for_step(directory, 10, process)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "split": "train", "lo')
    images = directory / "images"
    shutil.copy(images / "validation_000008.png", images / "validation_000019.png")

    errors = resume(directory)
    (resumed,) = map(int, re.findall(r"resuming after step (\d+)", errors))
    assert 0 < resumed < STEPS
    assert_same_bits(last_state(directory), last_state(uninterrupted))
    assert_same_bits(mapper_parameters(directory), mapper_parameters(uninterrupted))
    assert measurements(directory) == measurements(uninterrupted)
    ours, theirs = (
        {key: value for key, value in tensorboard(run).items() if value is not None}
        for run in (directory, uninterrupted)
    )
    assert ours == theirs
    steps = [path.name for path in sorted(images.iterdir())]
    assert steps == [f"validation_{step:06}.png" for step in (8, 16, 20)]
    # Resuming a finished run changes nothing.
    assert f"resuming after step {STEPS}" in resume(directory)
    assert measurements(directory) == measurements(uninterrupted)


def test_a_finished_run_writes_its_best_mapper_again_if_it_is_missing(
    resume, copied, uninterrupted
):
    shutil.rmtree(copied / "mapper")
    resume(copied)
    assert_same_bits(mapper_parameters(copied), mapper_parameters(uninterrupted))


def test_a_preempted_run_saves_before_it_stops(train, resume, uninterrupted, tmp_path, monkeypatch):
    record = Measurements.scalars

    def record_and_stop(measurements, step, *measured):
        record(measurements, step, *measured)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Measurements, "scalars", record_and_stop)
        outcome = train(save_interval=1000)
    assert outcome.code == 128 + signal.SIGTERM
    (stopped,) = map(int, re.findall(r"stopped by SIGTERM after step (\d+)", outcome.err))
    directory = tmp_path / "run"
    assert 5 <= stopped <= 6 and (directory / "checkpoints" / str(stopped)).exists()
    assert f"resuming after step {stopped}" in resume(directory, save_interval=1000)
    assert_same_bits(last_state(directory), last_state(uninterrupted))
    assert measurements(directory) == measurements(uninterrupted)


def test_two_hosts_train_as_one_even_if_one_is_preempted(start, uninterrupted, tmp_path):
    directory = tmp_path / "run"

    def start_both() -> list[subprocess.Popen]:
        joining = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": 2}
        dumps = [dump_programs(tmp_path / "programs" / str(i)) for i in range(2)]
        return [
            start(directory, 2, xla=dump, **joining, process_id=i) for i, dump in enumerate(dumps)
        ]

    processes = start_both()
    # Both processes are now about to take the first step.
    wait_for_lines(directory, 1, *processes)
    processes[1].send_signal(signal.SIGTERM)
    errors = [finish(process, 128 + signal.SIGTERM) for process in processes]
    assert "% CLIP" in errors[0] and "% CLIP" not in errors[1]
    (stopped,) = map(int, re.findall(r"stopped by SIGTERM after step (\d+)", errors[0]))
    assert stopped < STEPS

    errors = [finish(process) for process in start_both()]
    assert f"resuming after step {stopped}" in errors[0]
    ours, alone = measurements(directory), measurements(uninterrupted)
    for one, other in zip(ours, alone, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    expected = mapper_parameters(uninterrupted)
    for name, array in mapper_parameters(directory).items():
        assert np.abs(array - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max()
    for i in range(2):
        programs = read_train_steps(tmp_path / "programs" / str(i))
        assert programs
        assert all(collectives(program) == ["all-reduce"] for program in programs)


def test_defaults_are_the_official_ones(run_script):
    outcome = run_script("train_mapper.py", "--help")
    flags = re.findall(r"\n  --(?:\[no\])?(\w+):((?:(?!\n  --).)*)", outcome.out, re.DOTALL)
    given = {name: re.search(r"\(default: '(.*?)'\)", text) for name, text in flags}
    defaults = {name: match[1] for name, match in given.items() if match}
    official = {
        "batch_size": "2",
        "optimizer": "ranger",
        "learning_rate": "0.5",
        "clip_lambda": "1.0",
        "id_lambda": "0.1",
        "latent_l2_lambda": "0.8",
        "strength": "0.1",
        "train_dataset_size": "5000",
        "max_steps": "50000",
        "log_interval": "50",
        "image_interval": "100",
        "val_interval": "2000",
        "save_interval": "2000",
        "space": "w_plus",
        **{f"no_{level}_mapper": "false" for level in ("coarse", "medium", "fine")},
    }
    assert {name: defaults.get(name) for name in official} == official


@pytest.fixture
def without_networks(monkeypatch):
    """Replaces training steps and edits, so that nothing changes and nothing is compiled."""
    losses = {"loss": 0.8, "clip_loss": 0.75, "latent_l2": 1e-12}
    stand_ins = {
        "make_mapper_train_step": lambda *_, **__: lambda state, _: (state, losses),
        "make_mapper_evaluation": lambda *_, **__: lambda *_: losses,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(mapper_training, name, stand_in)
    monkeypatch.setattr(
        mapper_editing, "apply_mapper", lambda *given: (np.zeros((len(given[2]), 8, 8, 3)), None)
    )


def test_a_large_batch_is_validated_on_as_many_images(train, without_networks):
    changes = {"train_dataset_size": 65, "test_dataset_size": None}
    outcome = train(batch_size=65, max_steps=1, mapper_type="LevelsMapper", **changes)
    assert outcome.code == 0, outcome.err


def test_a_run_reports_its_loss_and_warns_if_it_has_no_effect(train, without_networks, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    outcome = train(max_steps=2, val_interval=2, mapper_type="LevelsMapper")
    assert outcome.code == 0, outcome.err
    assert "step 2, validation loss 0.8000" in outcome.err
    assert "note: no --arcface, so no identity loss" in outcome.err
    assert "loss 0.8000: 100.0% CLIP (1 x 0.75), 0.0% latent L2" in outcome.err
    bar = outcome.err.split("\r")[-1]
    assert "2/2" in bar and "clip_loss=0.75" in bar and re.search("step/s|s/step", bar)
    assert "warning: residual-near-zero: " in outcome.err
    assert "warning: clip-loss-flat: " in outcome.err


def assert_refused(outcome, *words):
    notes = ("note: ", "resuming after step ")
    errors = [line for line in outcome.err.splitlines() if not line.startswith(notes)]
    assert outcome.code == 1
    assert len(errors) == 1 and errors[0].startswith("error: ")
    for word in words:
        assert word in errors[0]


LATENTS = {
    "empty": (np.zeros((0, 6, 16)), "empty"),
    "of another generator": (np.zeros((4, 18, 512)), "(4, 18, 512)"),
    "not finite": (np.full((4, 6, 16), np.nan), "NaN"),
    "too few": (np.zeros((3, 6, 16)), "fewer than one batch"),
}


@pytest.mark.parametrize("flag", ["latents_train", "latents_test"])
@pytest.mark.parametrize("name", LATENTS)
def test_useless_latents_are_refused(train, tmp_path, name, flag):
    latents, reason = LATENTS[name]
    np.save(tmp_path / "latents.npy", latents.astype(np.float32))
    size = flag.replace("latents_", "") + "_dataset_size"
    outcome = train(**{flag: tmp_path / "latents.npy", size: None})
    assert_refused(outcome, "latents.npy", reason)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id_lambda": 0.1}, ["--arcface"]),
        ({"mapper_type": "FullStyleSpaceMapper"}, ["--space=stylespace"]),
        ({"mapper_type": "SingleMapper", "no_fine_mapper": True}, ["--mapper_type=LevelsMapper"]),
        ({"no_coarse_mapper": True, "no_medium_mapper": True}, ["no coarse, medium or fine group"]),
        ({"description": "a person with a very long beard"}, ["tokens", "shorten"]),
        ({"coordinator_address": "127.0.0.1:1"}, ["--num_processes"]),
        (
            {"coordinator_address": "127.0.0.1:70000", "num_processes": 2, "process_id": 0},
            ["127.0.0.1:70000", "65535"],
        ),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 2**63}, ["seed", str(2**63)]),
        ({"exp_dir": "gs://bucket/run"}, ["--exp_dir=gs://bucket/run", "mount"]),
        ({"exp_dir": "~nobody-at-all/run"}, ["~nobody-at-all/run", "no such user"]),
        ({"optimizer": "sgd"}, ["ranger", "adam"]),
        (
            {"latents_train": "faces.npy", "train_dataset_size": 5},
            ["--train_dataset_size", "--latents_train"],
        ),
        ({"num_processes": 0}, ["num_processes", "0"]),
    ],
)
def test_flags_that_do_not_match_are_refused(train, tmp_path, changes, words):
    assert_refused(train(**changes), *words)
    assert not (tmp_path / "run").exists()


def test_stylespace_latents_need_the_flag(train, tmp_path, generator):
    styles = tuple(jnp.zeros((4, dim)) for dim in generator.config.style_dims)
    save_latents(tmp_path / "latents", styles)
    outcome = train(latents_train=tmp_path / "latents.npz", train_dataset_size=None)
    assert_refused(outcome, "--space=stylespace")


def test_a_batch_that_devices_cannot_share_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    assert_refused(train(), "batch of 4 is not divisible by 3 devices", "6")
    assert not (tmp_path / "run").exists()


def test_a_host_that_never_joins_is_named(train, tmp_path):
    joining = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": 3}
    outcome = train(**joining, process_id=0, join_timeout=1)
    assert_refused(outcome, "process 1, 2 of 3 did not join")
    outcome = train(**joining, process_id=2, join_timeout=1)
    assert_refused(outcome, "process 0 of 3 did not join")
    assert not (tmp_path / "run").exists()


def test_other_flags_are_refused_with_the_difference(train, copied):
    before = measurements(copied)
    outcome = train(learning_rate=0.5)
    assert_refused(outcome, "--learning_rate was 1000.0 and is 0.5", "another --exp_dir")
    assert measurements(copied) == before


def test_a_directory_that_holds_something_else_is_refused(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    assert_refused(train(), "holds no run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_run_that_is_still_running_is_refused(train, resume, copied):
    flags = json.loads((copied / "config" / "flags.json").read_text())["flags"]
    with claim(epath.Path(copied), flags):
        assert_refused(train(), "is still running; wait for it")
    resume(copied)


def test_an_empty_directory_becomes_a_run(train, without_networks, tmp_path):
    (tmp_path / "run").mkdir()
    assert train(max_steps=1, mapper_type="LevelsMapper").code == 0
    assert load_mapper(tmp_path / "run")


def test_the_identity_is_part_of_the_loss(train, arcface_path, tmp_path):
    outcome = train(arcface=arcface_path, max_steps=2, log_interval=1)
    assert outcome.code == 0, outcome.err
    assert re.search(r"% CLIP \(1 x .*% identity \(0\.1 x ", outcome.err)
    lines = measurements(tmp_path / "run")
    assert {line["split"] for line in lines} == {"train", "validation"}
    assert all(line["id_loss"] > 0 for line in lines if line["step"])


@pytest.mark.parametrize("file", ["config/flags.json", "metrics.jsonl"])
def test_damaged_records_are_refused(train, copied, file):
    (copied / file).write_text('{"flags": \n{}\n')
    assert_refused(train(), file, "damaged")


def test_a_damaged_checkpoint_is_refused(train, copied):
    for path in (copied / "checkpoints" / str(STEPS) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    assert_refused(train(), f"checkpoint of step {STEPS}", "cannot be read")


def test_a_validation_that_is_not_finite_stops_the_run(train, tmp_path, monkeypatch):
    losses = {"loss": math.nan, "clip_loss": 0.75, "latent_l2": 0.0}
    monkeypatch.setattr(
        mapper_training, "make_mapper_evaluation", lambda *_, **__: lambda *_: losses
    )
    outcome = train(max_steps=1)
    assert outcome.code == 1 and "the loss is nan at step 0" in outcome.err
    assert not (tmp_path / "run" / "mapper").exists()


def test_training_stops_early_by_the_validation_loss(train, tmp_path):
    changes = {"max_steps": 30, "val_interval": 1, "image_interval": 100}
    assert train(**changes, stop_loss=10.0).code == 0
    assert [line["step"] for line in measurements(tmp_path / "run")][-1] == 1
    changes |= {"learning_rate": 0.0, "patience": 2, "exp_dir": tmp_path / "patient"}
    assert train(**changes).code == 0
    # Of equal validation losses, the first is the best.
    assert [line["step"] for line in measurements(tmp_path / "patient")][-1] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"space": "stylespace", "latents_train": "styles.npz", "train_dataset_size": None},
        {"space": "stylespace", "mapper_type": "FullStyleSpaceMapper"},
        {
            "mapper_type": "SingleMapper",
            "latents_train": "w_plus.npy",
            "train_dataset_size": None,
        },
        {"dtype": "bfloat16", "optimizer": "adam", "start_samples": 4},
        {"guidance": "direction", "neutral": "a man", "keep": "a scarf", "views": 2},
    ],
)
def test_every_kind_of_mapper_is_trained(train, tmp_path, monkeypatch, generator, changes):
    monkeypatch.chdir(tmp_path)
    latents = sample_latents(generator, 8, seed=0)
    save_latents("w_plus", latents)
    save_latents("styles", jax.jit(type(generator).styles)(generator, latents))
    assert train(max_steps=2, val_interval=2, **changes).code == 0
    mapper = load_mapper(tmp_path / "run")
    assert type(mapper).__name__ == changes.get(
        "mapper_type", "WithoutToRGBStyleSpaceMapper" if "space" in changes else "LevelsMapper"
    )


def test_the_avatars_have_their_own_settings(run_script, tmp_path, monkeypatch):
    counts = []

    def sample_fewer(generator, clips, num, **options):
        counts.append(num)
        return sample_features(generator, clips, 64, **options)

    monkeypatch.setattr(linear_start, "sample_features", sample_fewer)
    command = (
        "train_mapper.py",
        "--description=a person with a beard",
        f"--exp_dir={tmp_path / 'run'}",
        "--max_steps=1",
        "--train_dataset_size=4",
        "--test_dataset_size=8",
    )
    outcome = run_script(*command)
    assert outcome.code == 1 and "fewer than one batch (--batch_size=8)" in outcome.err
    outcome = run_script(*command, "--batch_size=2")
    assert outcome.code == 0, outcome.err
    validations = [x for x in measurements(tmp_path / "run") if x["split"] == "validation"]
    # The direction of the text is better than no change.
    assert validations[0]["clip_loss"] < 0.9
    flags = json.loads((tmp_path / "run" / "config" / "flags.json").read_text())["flags"]
    assert flags["learning_rate"] == 8.0
    assert flags["guidance"] == "direction" and flags["neutral"] == "a person"
    assert flags["start_samples"] == 512 and counts == [512]
    mapper = load_mapper(tmp_path / "run")
    assert isinstance(mapper, LevelsMapper) and mapper.config.num_layers == 12
    card = mapper.config.card
    assert card.text == "a person with a beard" and card.strength == 0.1
    assert card.generator == fingerprint(load_generator())
    assert card.settings["guidance"] == "direction" and card.settings["max_steps"] == 1
    assert "jax" in card.versions and card.date


def small_disk(run: Path, kilobytes: int) -> list[str]:
    """The beginning of a command, for which `run` is a disk; `run.files` keeps the disk's files."""
    run.mkdir()
    script = """
        mount -t tmpfs -o size="$2"k tmpfs "$1" && disk="$1" && shift 2 || exit
        "$@"; code=$?
        cp -a "$disk" "$disk.files" && exit $code
    """
    return ["unshare", "-Urm", "sh", "-c", script, "sh", str(run), str(kilobytes)]


def can_mount() -> bool:
    try:
        command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="mounting a small disk needs Linux's user namespaces")
@pytest.mark.parametrize("share", [0.05, 0.4, 0.8])
def test_a_training_on_a_full_disk_ends_in_one_line_and_is_resumed(
    start, resume, uninterrupted, tmp_path, share
):
    run = tmp_path / "run"
    size = sum(path.stat().st_size for path in uninterrupted.rglob("*") if path.is_file())
    errors = finish(start(run, prefix=small_disk(run, int(share * size / 1024))), code=1)
    (message,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert str(run) in message and "No space left on device" in message
    assert not re.search("Traceback|Exception|Event loop", errors)

    run = tmp_path / "run.files"
    for checkpoint in (run / "checkpoints").glob("*"):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.restore(checkpoint / "state")
    # The best mapper of the validations so far.
    if (run / "mapper").exists():
        load_mapper(run)
    assert not [path for path in run.rglob("*") if re.search("tmp|part", path.name)]
    resume(run)
    assert_same_bits(last_state(run), last_state(uninterrupted))


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(train, tmp_path):
    outcome = train(optimizer="adam", learning_rate=1e12, save_interval=1, val_interval=1000)
    assert outcome.code == 1
    (message,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    (step,) = map(int, re.findall(r"at step (\d+)", message))
    checkpoints = tmp_path / "run" / "checkpoints"
    saved = [int(path.name) for path in checkpoints.iterdir()]
    assert saved and max(saved) < step
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(checkpoints / str(max(saved)) / "state")
    assert all(np.isfinite(array).all() for array in state.values())


def test_a_learning_rate_that_overflows_fails_early_with_one_line(train, tmp_path):
    outcome = train(learning_rate=1e30, log_interval=1)
    assert outcome.code == 1
    (message,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert re.search(r"at step [12], .*lower --learning_rate", message)
    assert "Traceback" not in outcome.err
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "Infinity" not in log and "NaN" not in log
    assert not (tmp_path / "run" / "mapper").exists()


PAIRS = {
    "description": None,
    "mapper_type": "DeltaMapper",
    "learning_rate": 0.5,
    "width": 8,
    "pair_redraw": 0.2,
    "pair_reach": 3,
    "direction_noise": 0.3,
    "val_interval": 10,
}


def test_a_mapper_for_any_text_is_trained_on_pairs_and_resumes(resume, tmp_path):
    run = tmp_path / "run"
    resume(run, **PAIRS, max_steps=20)
    mapper = load_mapper(run)
    assert type(mapper).__name__ == "DeltaMapper"
    lines = measurements(run)
    validation = [line["loss"] for line in lines if line["split"] == "validation"]
    assert min(validation[1:]) < validation[0]
    assert {"l2_loss", "cosine_loss"} <= set(lines[0])
    # Simulates a crash before the last checkpoint.
    shutil.rmtree(run / "checkpoints" / "20")
    assert "resuming after step 16" in resume(run, **PAIRS, max_steps=20)
    assert measurements(run) == lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"description": "a hat"}, "--description has no effect with --mapper_type=DeltaMapper"),
        ({"guidance": "direction"}, "--guidance has no effect with"),
        ({"space": "w_plus"}, "needs --space=stylespace"),
    ],
)
def test_flags_of_a_text_are_refused_for_a_mapper_for_any_text(train, changes, message):
    assert_refused(train(**PAIRS | changes), message)


def test_flags_of_pairs_are_refused_for_a_mapper_of_one_text(train):
    assert_refused(train(width=8), "--width has no effect with")
    assert_refused(train(description=None), "--description is missing")
