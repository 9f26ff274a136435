import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import styleclip_jax.avatars
import styleclip_jax.methods.tuning
from avatars import evaluate_encoder
from avatars.attributes import NAMES, index, sample
from avatars.classifier import TRAINED
from avatars.dataset import render
from avatars.evaluate_encoder import EDITS, agreement, score_edits, with_eye_patch
from styleclip_jax.avatars import AVATARS_CONFIG


def test_agreement_is_the_share_of_equal_labels():
    labels = sample(4, seed=0)
    others = labels.copy()
    others[0, 0] += 1
    others[0, 1] += 1
    others[1, 1] += 1
    shares = agreement(labels, others)
    assert (shares[NAMES[0]], shares[NAMES[1]], shares["all"]) == (0.75, 0.5, 0.5)
    assert shares["mean"] == pytest.approx(1 - 3 / labels.size)


def test_an_edit_is_right_in_full_if_nothing_else_changes(monkeypatch):
    # Labels take the place of images.
    monkeypatch.setattr(evaluate_encoder, "read_labels", lambda _, labels: labels)
    classifier: Any = None
    before = sample(8, seed=0)
    before[:, NAMES.index("headwear")] = 0
    edited = {}
    for slot, value in EDITS:
        after = before.copy()
        after[:, NAMES.index(slot)] = index(slot, value)
        edited[f"{slot} {value}"] = after
    assert score_edits(classifier, before, edited)["mean"]["whole"] == 1
    # In the first edit, two images also change their background, and one lacks the target.
    first = next(iter(edited.values()))
    background = NAMES.index("background")
    first[:2, background] = 1 - np.minimum(first[:2, background], 1)
    first[2] = before[2]
    first[2, NAMES.index(EDITS[0][0])] = 0
    scores = [*score_edits(classifier, before, edited).values()]
    assert (scores[0]["target"], scores[0]["whole"]) == (7 / 8, 5 / 8)
    assert scores[-1]["whole"] == pytest.approx((5 / 8 + len(EDITS) - 1) / len(EDITS))


def test_an_eye_patch_covers_one_eye_and_nothing_beyond_the_face():
    avatar = render(sample(1, seed=3)[0])
    patched = with_eye_patch(avatar)
    y, x = np.nonzero((patched != avatar).any(-1))
    assert 0.01 < len(y) / avatar[..., 0].size < 0.04
    assert y.min() >= 40 and y.max() < 72 and x.min() >= 32 and x.max() < 96
    assert (patched[59, 50] == 0).all() and (patched[59, 78] == avatar[59, 78]).all()


def test_the_evaluation_writes_agreement_edits_and_tuning(run_script, tmp_path, monkeypatch):
    # The same program with fewer steps.
    config = dataclasses.replace(AVATARS_CONFIG, steps=1, start_samples=8)
    monkeypatch.setattr(styleclip_jax.avatars, "AVATARS_CONFIG", config)
    few = functools.partial(styleclip_jax.methods.tuning.TuneConfig, steps=4)
    monkeypatch.setattr(styleclip_jax.methods.tuning, "TuneConfig", few)
    attributes = sample(16, seed=5)
    images = np.stack([render(row) for row in attributes])
    np.savez(tmp_path / "test.npz", images=images, attributes=attributes)
    outcome = run_script(
        "avatars/evaluate_encoder.py",
        f"--data={tmp_path / 'test.npz'}",
        f"--classifier={TRAINED}",
        f"--out={tmp_path}",
        "--count=16",
        "--steps=1",
        "--edits=2",
        "--tune=1",
    )
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"encoder", "1 steps", "tuning", "edits"}
    assert metrics["encoder"]["mean"] >= 0.92
    assert metrics["1 steps"]["psnr"] > 20
    edits = metrics["edits"]
    assert len(edits["inverted"]) == len(edits["generated"]) == len(EDITS) + 1
    whole = [edits[name]["mean"]["whole"] for name in ("inverted", "generated")]
    assert edits["ratio"] == (whole[0] / whole[1] if whole[1] else None)
    before, after = metrics["tuning"]["inverted"], metrics["tuning"]["tuned"]
    assert after["mse"] < before["mse"] and after["mse_of_patch"] < before["mse_of_patch"]
    for name in ("inversions", "others", "edits", "tuned"):
        with Image.open(tmp_path / f"{name}.png") as sheet:
            assert sheet.width > 3 * 256
