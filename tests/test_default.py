"""The first command of the README, with the models that ship with the package."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styleclip_jax.io.checkpoints import load_generator
from styleclip_jax.io.latents import save_latents
from styleclip_jax.latents import sample_latents

ROOT = Path(__file__).parents[1]
TEXT = "a person with purple hair"
EDITED = "1-a-person-with-purple-hair"


@pytest.fixture
def connections(monkeypatch):
    """Refuses every connection and every look-up of a host, and lists them."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("there is no network")

    for method in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, method, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def test_the_first_command_edits_avatars_without_a_network(run_script, tmp_path, connections):
    results = tmp_path / "results"
    outcome = run_script(
        "optimize.py",
        f"--description={TEXT}",
        f"--results_dir={results}",
        "--num_images=2",
        "--steps=12",
    )
    assert outcome.code == 0, outcome.err
    assert not connections
    assert "before_after.png" in outcome.out
    with Image.open(results / "before_after.png") as sheet:
        assert sheet.width > 2 * 256 and sheet.height > 2 * 256

    directory = results / EDITED
    for name in ("000.png", "001.png"):
        before, after = (np.asarray(Image.open(d / name)) for d in (results / "before", directory))
        assert before.shape == after.shape and min(before.shape[:2]) >= 128
        assert (before != after).any()
    before, after = (np.load(d / "latents.npy") for d in (results / "before", directory))
    assert before.shape == after.shape and len(before) == 2
    assert (before != after).any(axis=(1, 2)).all()

    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["flags"]["generator"] is metrics["flags"]["clip"] is None
    (edit,) = metrics["descriptions"]
    assert edit["description"] == TEXT and edit["steps"] == 12
    assert len(edit["images"]) == 2
    for image in edit["images"]:
        assert image["clip_similarity_after"] > image["clip_similarity_before"]


def share_of_purple(run_script, results, *arguments):
    """Runs optimize.py; returns the share of strongly purple pixels before and after."""
    outcome = run_script(
        "optimize.py", f"--description={TEXT}", f"--results_dir={results}", *arguments
    )
    assert outcome.code == 0, outcome.err

    def share(directory):
        images = [np.asarray(Image.open(path), int) for path in sorted(directory.glob("0*.png"))]
        return np.array(
            [
                # The purple of hair; backgrounds are paler.
                np.mean((i[..., 2] > i[..., 1] + 60) & (i[..., 0] > i[..., 1] + 30))
                for i in images
            ]
        )

    return (share(results / name) for name in ("before", EDITED))


def test_the_first_command_puts_sunglasses_on_every_face(run_script, tmp_path):
    results = tmp_path / "results"
    outcome = run_script(
        "optimize.py", "--description=a person with sunglasses", f"--results_dir={results}"
    )
    assert outcome.code == 0, outcome.err

    def share_of_black(directory):
        """Share of black pixels in the box around the eyes."""
        images = [np.asarray(Image.open(path)) for path in sorted(directory.glob("0*.png"))]
        return np.array([np.mean(i[46:66, 40:88].max(-1) < 90) for i in images])

    assert (share_of_black(results / "before") < 0.2).all()
    assert (share_of_black(results / "1-a-person-with-sunglasses") > 0.6).all()


def test_an_edit_makes_hair_purple(run_script, tmp_path):
    before, after = share_of_purple(run_script, tmp_path / "results")
    assert (before < 0.02).all()
    assert (after > 0.03).sum() >= 3


def test_a_face_with_purple_hair_is_made_from_the_text_alone(run_script, tmp_path):
    results = tmp_path / "results"
    _, after = share_of_purple(run_script, results, "--mode=generate")
    assert after > 0.03
    # A face, and not an adversarial image: its background is one bright color.
    with Image.open(results / EDITED / "000.png") as image:
        corners = np.asarray(image)[4:28, [*range(4, 28), *range(100, 124)]]
    assert corners.mean() > 150 and corners.std(axis=(0, 1)).max() < 35


@pytest.mark.parametrize("kind", ["random images", "style channels"])
def test_avatars_are_edited_in_stylespace(run_script, tmp_path, kind):
    flags = [] if kind == "random images" else [f"--latents={tmp_path / 'mine.npz'}"]
    generator = load_generator()
    save_latents(tmp_path / "mine", generator.styles(sample_latents(generator, 1, seed=0)))
    outcome = run_script(
        "optimize.py",
        f"--description={TEXT}",
        "--space=stylespace",
        "--steps=2",
        f"--results_dir={tmp_path / 'results'}",
        *(flags or ["--num_images=1"]),
    )
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    "command", ["directions.py", "apply_mapper.py --mapper=any_text", "optimize.py --steps=1"]
)
def test_words_that_the_clip_does_not_know_are_named(run_script, tmp_path, command):
    script, *flags = command.split()
    outcome = run_script(
        script,
        *flags,
        "--description=a person with a banana",
        "--num_images=1",
        f"--results_dir={tmp_path / 'results'}",
    )
    assert outcome.code == 0, outcome.err
    note = "note: the CLIP of the avatars was not trained on these words: banana;"
    assert outcome.err.startswith(note)
