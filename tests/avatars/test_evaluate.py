import numpy as np
import pytest

from avatars.attributes import LABELS, NAMES, index, observe, sample, with_value
from avatars.evaluate import edit_score, histograms


@pytest.fixture
def labels():
    attributes = sample(300, seed=0)
    bare = with_value(attributes, "headwear", "none")
    return observe(with_value(bare, "glasses", "none"))


def edited(labels, pictures, slot, value):
    after = labels.copy()
    after[pictures, NAMES.index(slot)] = index(slot, value)
    return after


def test_an_edit_that_changes_what_it_should_and_nothing_else_is_perfect(labels):
    after = edited(labels, slice(None), "glasses", "sunglasses")
    score = edit_score(labels, after, "glasses", "sunglasses")
    assert score == {"before": 0.0, "target": 1.0, "others": 1.0}


def test_sunglasses_may_hide_the_eyes(labels):
    after = edited(labels, slice(None), "glasses", "sunglasses")
    after[:, NAMES.index("eyes")] = LABELS["eyes"].index("hidden")
    assert edit_score(labels, after, "glasses", "sunglasses")["others"] == 1


def test_a_half_done_edit_and_other_changes_are_counted(labels):
    after = edited(labels, slice(150), "glasses", "sunglasses")
    after[:, NAMES.index("background")] += 1
    score = edit_score(labels, after, "glasses", "sunglasses")
    assert score["target"] == 0.5
    # One of the eight to ten other slots that can be seen.
    assert 1 - 1 / 8 < score["others"] + 0.02 < 1 - 1 / 10 + 0.04
    assert edit_score(after, after, "glasses", "sunglasses")["before"] == 0.5


def test_histograms_are_shares_of_what_can_be_seen(labels):
    shares = histograms(labels)
    assert shares["headwear"]["none"] == 1
    for slot in NAMES:
        assert sum(shares[slot].values()) == pytest.approx(1)
    assert shares["skin"]["pale"] == np.mean(labels[:, NAMES.index("skin")] == 0)
