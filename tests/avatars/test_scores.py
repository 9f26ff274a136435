import numpy as np
import pytest

from avatars.attributes import LABELS, NAMES, index, observe, sample, with_value
from avatars.scores import edit_score, kept_by_slot


@pytest.fixture
def labels():
    attributes = sample(300, seed=0)
    bare = with_value(attributes, "headwear", "none")
    return observe(with_value(bare, "glasses", "none"))


def edited(labels, images, slot, value):
    after = labels.copy()
    after[images, NAMES.index(slot)] = index(slot, value)
    return after


def test_an_edit_that_changes_only_its_target_is_perfect(labels):
    after = edited(labels, slice(None), "glasses", "sunglasses")
    score = edit_score(labels, after, "glasses", "sunglasses")
    assert score == {"before": 0.0, "target": 1.0, "others": 1.0, "whole": 1.0}


def test_sunglasses_may_hide_the_eyes(labels):
    after = edited(labels, slice(None), "glasses", "sunglasses")
    after[:, NAMES.index("eyes")] = LABELS["eyes"].index("hidden")
    score = edit_score(labels, after, "glasses", "sunglasses")
    assert score["others"] == score["whole"] == 1


def test_missing_and_unrelated_changes_are_counted(labels):
    after = edited(labels, slice(150), "glasses", "sunglasses")
    after[:, NAMES.index("background")] += 1
    score = edit_score(labels, after, "glasses", "sunglasses")
    assert score["target"] == 0.5
    # One of the eight to ten other visible slots.
    assert 1 - 1 / 8 < score["others"] + 0.02 < 1 - 1 / 10 + 0.04
    assert edit_score(after, after, "glasses", "sunglasses")["before"] == 0.5


def test_a_whole_image_is_right_if_it_shows_the_target_and_nothing_else_changed(labels):
    after = edited(labels, slice(200), "glasses", "sunglasses")
    # A quarter of those with sunglasses, and some without.
    after[:50, NAMES.index("background")] += 1
    after[50:100, NAMES.index("skin")] += 1
    after[250:, NAMES.index("mouth")] += 1
    assert edit_score(labels, after, "glasses", "sunglasses")["whole"] == pytest.approx(100 / 300)


def test_shares_by_slot_show_which_slot_changed(labels):
    after = edited(labels, slice(None), "glasses", "sunglasses")
    after[:75, NAMES.index("background")] += 1
    shares = kept_by_slot(labels, after, "glasses", "sunglasses")
    assert shares.pop("background") == 0.75
    assert shares and set(shares.values()) == {1.0}
    # Sunglasses hide the eyes, which may change.
    assert "glasses" not in shares and "eyes" not in shares


def test_labels_are_in_the_order_of_the_slots(monkeypatch):
    def predict(_, images):
        return {name: np.full(len(images), i) for i, name in reversed([*enumerate(NAMES)])}

    monkeypatch.setattr("avatars.scores.predict", predict)
    from avatars.scores import read_labels

    read = read_labels(None, np.zeros((2, 4, 4, 3)))  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(read, [range(len(NAMES))] * 2)
