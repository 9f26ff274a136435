import numpy as np
import pytest

from avatars.attributes import LABELS, NAMES, UNKNOWN, index, observe, sample, with_value
from avatars.captions import Truth, truths
from avatars.running_edits import Targets, choose_targets, merge_labels


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_targets_change_one_attribute_and_its_covers(rng):
    attributes = sample(300, seed=1)
    targets = choose_targets(attributes, rng, 0.2)
    for i, (text, slot, value) in enumerate(
        zip(targets.texts, targets.slots, targets.values, strict=True)
    ):
        assert text
        name = NAMES[slot]
        label = LABELS[name][value]
        np.testing.assert_array_equal(
            targets.wanted[i], with_value(attributes[i : i + 1], name, label)[0]
        )
    rows = np.arange(300)
    before, after = (observe(x)[rows, targets.slots] for x in (attributes, targets.wanted))
    assert not targets.rises[before == targets.values].any()
    assert not targets.rises[after != targets.values].any()
    told = targets.truths[rows, targets.slots]
    assert (told[rows, targets.values] == 1).all()
    changed = (before != targets.values) & (after == targets.values)
    np.testing.assert_array_equal(targets.rises[changed], told[rows, before][changed] != 1)
    assert 0.5 < targets.rises.mean() < 1


def sunglasses_for(attributes):
    count, slot, value = len(attributes), "glasses", "sunglasses"
    return Targets(
        [f"a person with {value}"] * count,
        np.full(count, NAMES.index(slot)),
        np.full(count, index(slot, value)),
        np.repeat(truths([{slot: Truth(frozenset({value}))}]), count, axis=0),
        with_value(attributes, slot, value),
        np.ones(count, bool),
    )


def certain_of(labels):
    return {name: np.eye(len(LABELS[name]))[labels[:, i]] for i, name in enumerate(NAMES)}


def test_the_classifier_decides_whether_an_edit_has_reached_its_target():
    attributes = with_value(sample(2, seed=0), "glasses", "none")
    targets = sunglasses_for(attributes)
    seen = certain_of(observe(attributes))
    column = NAMES.index("glasses")
    seen["glasses"] = np.array([[0.0, 0.1, 0.9], [0.5, 0.0, 0.5]])
    labels = merge_labels(attributes, targets, seen)
    assert list(labels[:, column]) == [index("glasses", "sunglasses"), UNKNOWN]


def test_labels_to_preserve_change_only_if_the_classifier_is_certain():
    attributes = with_value(sample(3, seed=0), "background", "gray")
    column = NAMES.index("background")
    seen = certain_of(observe(attributes))
    blended, changed, nothing = [0.2, 0.8], [0.05, 0.95], [0.05, 0.5]
    seen["background"] = np.array(
        [[*row, *[(1 - sum(row)) / 4] * 4] for row in (blended, changed, nothing)]
    )
    labels = merge_labels(attributes, sunglasses_for(attributes), seen)
    gray, blue = (index("background", name) for name in ("gray", "blue"))
    assert list(labels[:, column]) == [gray, blue, UNKNOWN]
    others = np.arange(len(NAMES)) != column
    others[[NAMES.index("glasses"), NAMES.index("eyes")]] = False
    np.testing.assert_array_equal(labels[:, others], observe(attributes)[:, others])
