import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import seeded
import torch

import styleclip_jax.io.checkpoints as checkpoints
from ckpt_convert import __main__ as command_line
from ckpt_convert import formats, stylegan2
from styleclip_jax.io.text import load_tokenizer

ROOT = Path(__file__).parents[2]
GOLDEN = seeded.load("stylegan2")


@pytest.fixture
def rosinality(tmp_path):
    weights = {key: torch.tensor(value) for key, value in GOLDEN.weights("rosinality_64").items()}
    path = tmp_path / "generator.pt"
    torch.save({"g_ema": weights, "latent_avg": torch.ones(512)}, path)
    return path


@pytest.fixture
def fails(capsys, tmp_path):
    """Runs the command line, expects one line of error and an unchanged directory."""

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        assert command_line.main([str(argument) for argument in arguments]) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def test_a_converted_generator_is_loaded(rosinality, tmp_path, capsys):
    destination = tmp_path / "checkpoints" / "generator"
    assert command_line.main(["stylegan2", str(rosinality), str(destination)]) == 0
    assert capsys.readouterr().out == f"wrote {destination}\n"
    expected = stylegan2.convert(formats.read(rosinality)).model
    loaded = checkpoints.load_generator(destination)
    assert loaded.config == expected.config
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def write_tokenizer(path, tokens):
    path.mkdir(exist_ok=True)
    tokens = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    (path / "vocab.json").write_text(json.dumps(vocab))
    (path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return path


def test_a_clips_own_tokenizer_is_converted(write_hugging_face_clip, tmp_path, capsys):
    source = write_hugging_face_clip(tmp_path / "source", vocab_size=7)
    write_tokenizer(source, ["a", "b", "a</w>", "b</w>", "ab</w>"])
    assert command_line.main(["clip", str(source), str(tmp_path / "clip")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'clip'}\n"
    assert checkpoints.load_clip(tmp_path / "clip").config.vocab_size == 7
    tokens = load_tokenizer(tmp_path / "clip")(["ab a"])
    assert tokens.tolist() == [[5, 4, 2, 6, 0, 0, 0]]


def test_a_tokenizer_can_be_given_separately(write_hugging_face_clip, tmp_path):
    source = write_hugging_face_clip(tmp_path / "source", vocab_size=5)
    other = write_tokenizer(tmp_path / "other", ["a", "b</w>", "ab</w>"])
    arguments = ["clip", str(source), str(tmp_path / "clip"), "--tokenizer", str(other)]
    assert command_line.main(arguments) == 0
    assert load_tokenizer(tmp_path / "clip")


def test_a_clip_without_tokenizer_is_converted_with_a_note(
    write_hugging_face_clip, tmp_path, capsys
):
    source = write_hugging_face_clip(tmp_path / "source", vocab_size=7)
    assert command_line.main(["clip", str(source), str(tmp_path / "clip")]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "--tokenizer" in line]
    checkpoints.load_clip(tmp_path / "clip")


def test_a_tokenizer_that_does_not_match_leaves_no_files(write_hugging_face_clip, fails, tmp_path):
    source = write_hugging_face_clip(tmp_path / "source", vocab_size=4)
    other = write_tokenizer(tmp_path / "other", ["a"] * 5 + list("bcdefg"))
    assert "expected 4" in fails("clip", source, tmp_path / "clip", "--tokenizer", other)


def test_a_mapper_and_latents_are_converted(tmp_path):
    tensors = {}
    for n in range(1, 5):
        tensors[f"mapper.mapping.mapping.{n}.weight"] = torch.ones(4, 4)
        tensors[f"mapper.mapping.mapping.{n}.bias"] = torch.ones(4)
    options = {"mapper_type": "SingleMapper", "stylegan_size": 16}
    torch.save({"state_dict": tensors, "opts": options}, tmp_path / "a.pt")
    assert command_line.main(["mapper", str(tmp_path / "a.pt"), str(tmp_path / "a")]) == 0
    described = json.loads((tmp_path / "a" / "config.json").read_text())
    assert described["model"] == "SingleMapper"
    assert described["config"]["num_layers"] == 6
    torch.save(torch.ones(2, 6, 4), tmp_path / "faces.pt")
    arguments = ["latents", str(tmp_path / "faces.pt"), str(tmp_path / "faces.npy")]
    assert command_line.main(arguments) == 0
    assert np.load(tmp_path / "faces.npy").shape == (2, 6, 4)


def test_bad_input_prints_one_line_and_leaves_no_files(fails, rosinality, tmp_path):
    destination = tmp_path / "out"
    assert "does not exist" in fails("stylegan2", tmp_path / "missing.pt", destination)
    assert "is not a CLIP" in fails("clip", rosinality, destination)
    assert "is not an ArcFace" in fails("arcface", rosinality, destination)
    assert "is not a StyleCLIP or DeltaEdit mapper" in fails("mapper", rosinality, destination)
    assert "neither a tensor" in fails("latents", rosinality, destination)
    assert "already exists" in fails("stylegan2", rosinality, tmp_path)
    assert "gs:// path" in fails("stylegan2", rosinality, "https://example.org/out")
    content = rosinality.read_bytes()
    rosinality.write_bytes(content[: len(content) // 2])
    assert "truncated" in fails("stylegan2", rosinality, destination)


def test_a_wrong_command_line_prints_one_line(fails):
    assert "invalid choice" in fails("stylegan", "a.pt", "b")
    assert "required" in fails("stylegan2", "a.pt")
    assert "--tokenizer" in fails("stylegan2", "a.pt", "b", "--tokenizer", "c")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(28, "No space left on device"), "No space left"),
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "out of memory"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: allocating"), "out of memory"),
        (signal.SIGTERM, "interrupted"),
    ],
)
def test_a_failed_write_leaves_no_files(fails, rosinality, tmp_path, monkeypatch, failure, message):
    def fail(path, *_):
        path.mkdir()
        (path / "parameters").mkdir()
        if isinstance(failure, signal.Signals):
            signal.raise_signal(failure)
            return
        raise failure

    monkeypatch.setattr(command_line, "save_model", fail)
    assert message in fails("stylegan2", rosinality, tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_for_the_threads_that_write(
    fails, rosinality, tmp_path, monkeypatch, number
):
    written = []
    # Shells start background programs with interruptions ignored.
    before = signal.signal(number, signal.default_int_handler)

    def save(path, *_):
        path.mkdir()
        signal.raise_signal(number)
        written.append(path)

    monkeypatch.setattr(command_line, "save_model", save)
    try:
        assert "interrupted" in fails("stylegan2", rosinality, tmp_path / "out")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert written == [tmp_path / "out"]


def test_the_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for command in ("stylegan2", "clip", "arcface", "mapper", "latents"):
        assert f"python -m ckpt_convert {command} " in out


def test_a_malicious_file_is_refused_as_a_program_without_pytorch(tmp_path):
    canary = tmp_path / "canary"
    program = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    (tmp_path / "ffhq.pkl").write_bytes(program)
    blocked = "import sys; sys.modules['torch'] = None; import runpy; sys.argv.pop(0);"
    blocked += (
        "sys.argv.insert(0, 'ckpt_convert'); runpy.run_module('ckpt_convert', None, '__main__')"
    )
    arguments = ["stylegan2", tmp_path / "ffhq.pkl", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", blocked, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "posix.system" in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not canary.exists()
    assert not (tmp_path / "out").exists()
