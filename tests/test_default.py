"""The first command of the README, with the models that ship with the package."""

import contextlib
import io
import json
import socket
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from styleclip_jax.io.checkpoints import load_generator
from styleclip_jax.io.latents import save_latents
from styleclip_jax.latents import sample_latents

SUNGLASSES, PURPLE = "a person with sunglasses", "a person with purple hair"
FACES = 4


class Edited(NamedTuple):
    """Results of the first command, what it printed and the connections that it tried."""

    results: Path
    out: str
    connections: list


@pytest.fixture(scope="module")
def edited(run_main, tmp_path_factory) -> Edited:
    """The first command, with every connection and every look-up of a host refused."""
    results = tmp_path_factory.mktemp("default") / "results"
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("there is no network")

    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for method in ("connect", "connect_ex", "sendto"):
            patched.setattr(socket.socket, method, refuse)
        patched.setattr(socket, "getaddrinfo", refuse)
        code = run_main(
            "optimize.py",
            f"--description={SUNGLASSES}",
            f"--results_dir={results}",
        )
    assert code == 0, err.getvalue()
    return Edited(results, out.getvalue(), attempts)


def place(results: Path, text: str) -> Path:
    return results / f"1-{text.replace(' ', '-')}"


def read_images(directory: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(directory.glob("0*.png"))])


def test_the_first_command_needs_no_network(edited):
    assert not edited.connections
    assert "before_after.png" in edited.out


def test_the_first_command_writes_images_latents_and_metrics(edited):
    results = edited.results
    with Image.open(results / "before_after.png") as sheet:
        assert sheet.width > 2 * 256 and sheet.height > FACES * 256

    images, latents = read_images(results / "before"), np.load(results / "before" / "latents.npy")
    assert len(images) == len(latents) == FACES and min(images.shape[1:3]) >= 128
    after = read_images(place(results, SUNGLASSES))
    assert images.shape == after.shape
    assert (images != after).any(axis=(1, 2, 3)).all()
    after = np.load(place(results, SUNGLASSES) / "latents.npy")
    assert latents.shape == after.shape
    assert (latents != after).any(axis=(1, 2)).all()

    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["flags"]["generator"] is metrics["flags"]["clip"] is None
    (edit,) = metrics["descriptions"]
    assert edit["description"] == SUNGLASSES
    assert edit["steps"] == 80 and len(edit["images"]) == FACES
    for image in edit["images"]:
        assert image["clip_similarity_after"] > image["clip_similarity_before"]


def share_of_black(directory):
    """Share of black pixels in the box around the eyes."""
    return np.mean(read_images(directory)[:, 46:66, 40:88].max(-1) < 90, axis=(1, 2))


def test_the_first_command_puts_sunglasses_on_every_face(edited):
    assert (share_of_black(edited.results / "before") < 0.2).all()
    assert (share_of_black(place(edited.results, SUNGLASSES)) > 0.6).all()


def share_of_purple(directory):
    """Share of strongly purple pixels: the purple of hair; backgrounds are paler."""
    red, green, blue = np.moveaxis(read_images(directory).astype(int), -1, 0)
    return np.mean((blue > green + 60) & (red > green + 30), axis=(1, 2))


def test_a_face_with_purple_hair_is_made_from_the_text_alone(run_script, tmp_path):
    results = tmp_path / "results"
    outcome = run_script(
        "optimize.py", f"--description={PURPLE}", "--mode=generate", f"--results_dir={results}"
    )
    assert outcome.code == 0, outcome.err
    assert share_of_purple(place(results, PURPLE)) > 0.03
    # A face, and not an adversarial image: its background is one bright color.
    (image,) = read_images(place(results, PURPLE))
    corners = image[4:28, [*range(4, 28), *range(100, 124)]]
    assert corners.mean() > 150 and corners.std(axis=(0, 1)).max() < 35


def assert_names_the_unknown_word(outcome):
    assert outcome.code == 0, outcome.err
    note = "note: the CLIP of the avatars was not trained on these words: banana;"
    assert outcome.err.startswith(note)


@pytest.mark.parametrize("kind", ["random images", "style channels"])
def test_avatars_are_edited_in_stylespace_and_unknown_words_are_named(run_script, tmp_path, kind):
    flags = ["--num_images=1"]
    if kind == "style channels":
        generator = load_generator()
        save_latents(tmp_path / "mine", generator.styles(sample_latents(generator, 1, seed=0)))
        flags = [f"--latents={tmp_path / 'mine.npz'}"]
    outcome = run_script(
        "optimize.py",
        "--description=a person with a banana",
        "--space=stylespace",
        "--steps=2",
        "--start_samples=8",
        f"--results_dir={tmp_path / 'results'}",
        *flags,
    )
    assert_names_the_unknown_word(outcome)


@pytest.mark.parametrize("command", ["directions.py", "apply_mapper.py --mapper=any_text"])
def test_words_that_the_clip_does_not_know_are_named(run_script, tmp_path, command):
    outcome = run_script(
        *command.split(),
        "--description=a person with a banana",
        "--num_images=1",
        # The best strength takes longer.
        "--strength=1",
        f"--results_dir={tmp_path / 'results'}",
    )
    assert_names_the_unknown_word(outcome)
