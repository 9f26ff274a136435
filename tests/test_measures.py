import numpy as np
import pytest

from styleclip_jax import measures
from styleclip_jax.io.checkpoints import load_clip
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.measures import (
    HELD_OUT_TEMPLATES,
    CLIPMeasure,
    gain_and_drift,
    pixel_change,
    summary,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

# Unit vectors, so that an image's entries are its cosines to the texts: target and two anchors.
TARGET, ANCHORS = np.eye(3)[0], np.eye(3)[1:]
BEFORE = np.array([[0.1, 0.2, 0.5], [0.3, 0.3, 0.1]])


def test_gain_is_the_mean_change_of_the_similarity_to_the_text():
    after = BEFORE + np.array([[0.2, 0, 0], [0.4, 0, 0]])
    changes = gain_and_drift(BEFORE, after, TARGET, ANCHORS)
    # The similarities to the target have a range of 0.2 before.
    assert changes == {
        "gain": pytest.approx(0.3),
        "relative_gain": pytest.approx(0.3 / 0.2),
        "drift": 0,
    }


def test_drift_is_the_mean_absolute_change_of_anchors_in_units_of_their_range():
    # Ranges 0.1 and 0.4; changes in opposite directions do not cancel out.
    after = BEFORE + np.array([[0, 0.1, 0.2], [0, -0.1, 0]])
    changes = gain_and_drift(BEFORE, after, TARGET, ANCHORS)
    assert changes["drift"] == pytest.approx((0.1 / 0.1 + 0.2 / 0.4 + 0.1 / 0.1 + 0) / 4)
    assert changes["gain"] == changes["relative_gain"] == 0


def test_pixel_change_is_a_share_of_the_range_of_what_can_be_seen():
    before, after = np.full((2, 4, 4, 3), -1.0), np.full((2, 4, 4, 3), -1.0)
    after[0] = 3
    assert pixel_change(before, after) == 0.5


def test_figures_are_averaged_over_wordings_and_then_over_texts():
    figures = {
        "beard": {"a beard": {"whole": 1.0}, "bearded": {"whole": 0.0}, "hairy": {"whole": 0.5}},
        "wink": {"winking": {"whole": 0.0, "kept_hair": 1.0}},
    }
    means = summary(figures)
    assert means["mean"] == {"whole": 0.25, "kept_hair": 1.0}
    assert means["texts"]["beard"]["mean"] == {"whole": 0.5}
    assert means["texts"]["beard"]["wordings"] == figures["beard"]


def test_drift_over_gain_is_a_ratio_of_means_and_absent_without_a_gain():
    rows = {
        "a beard": {"clip_relative_gain": 1.0, "clip_drift": 0.5},
        "bearded": {"clip_relative_gain": 3.0, "clip_drift": 0.5},
        "hairy": {"clip_relative_gain": -1.0, "clip_drift": 0.5},
    }
    means = summary({"beard": rows})
    assert means["mean"]["clip_drift_over_gain"] == 0.5
    of_wordings = [
        x.get("clip_drift_over_gain") for x in means["texts"]["beard"]["wordings"].values()
    ]
    assert of_wordings == [0.5, pytest.approx(1 / 6), None]


def test_no_template_that_measures_is_one_that_guides():
    assert not set(HELD_OUT_TEMPLATES) & {x.removesuffix(".") for x in IMAGENET_TEMPLATES}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (5, 32, 32, 3)).astype(np.float32)


@pytest.fixture
def measure(long_text_clip_path, images):
    clip, tokenizer = load_clip(long_text_clip_path), load_tokenizer(long_text_clip_path)
    return CLIPMeasure(clip, tokenizer, ["a beard", "a hat", "a smile"], images, "clip")


def test_unchanged_images_have_no_gain_and_no_drift(measure, images):
    changes = measure(images, "a beard", ["a hat", "a smile"])
    assert changes == pytest.approx({"gain": 0, "relative_gain": 0, "drift": 0}, abs=1e-5)


def test_batches_do_not_change_the_measurements(measure, images, monkeypatch):
    edited = images[::-1].copy()
    at_once = measure(edited, "a beard", ["a hat", "a smile"])
    monkeypatch.setattr(measures, "_BATCH", 2)
    assert measure(edited, "a beard", ["a hat", "a smile"]) == pytest.approx(at_once, abs=1e-5)
    assert at_once["drift"] > 0.1
