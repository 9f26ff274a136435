import subprocess
import sys

import numpy as np
import pytest

from avatars.attributes import (
    COVERED_BY,
    HIDDEN,
    LABELS,
    NAMES,
    SLOTS,
    implied,
    index,
    kept,
    observe,
    sample,
    with_value,
)
from avatars.dataset import render


def avatar(**values: str) -> np.ndarray:
    """Attributes with the first value of every slot but the given ones."""
    chosen = {slot: next(iter(options)) for slot, options in SLOTS.items()} | values
    return np.array([index(slot, value) for slot, value in chosen.items()], np.int8)


def label(attributes: np.ndarray, slot: str) -> str:
    return LABELS[slot][observe(attributes[None])[0, NAMES.index(slot)]]


def kept_slots(before: np.ndarray, slot: str, value: str) -> set[str]:
    row = kept(observe(before[None]), slot, value)[0]
    return {name for name, keep in zip(NAMES, row, strict=True) if keep}


def test_sampling_follows_the_weights_and_repeats_by_seed():
    attributes = sample(20_000, seed=3)
    for slot, column in zip(NAMES, attributes.T, strict=True):
        weights = np.array([value.weight for value in SLOTS[slot].values()])
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0.04
        frequencies = np.bincount(column, minlength=len(weights)) / len(column)
        np.testing.assert_allclose(frequencies, weights, atol=0.015)
    np.testing.assert_array_equal(attributes, sample(20_000, seed=3))
    assert (attributes != sample(20_000, seed=4)).any()


@pytest.mark.parametrize("slot", SLOTS)
def test_every_value_changes_the_image(slot):
    images = [render(avatar(**{slot: value})).tobytes() for value in SLOTS[slot]]
    assert len(set(images)) == len(SLOTS[slot])


def test_rendering_is_deterministic_and_colorful():
    first = render(avatar(headwear="hat", clothes_color="red", background="blue"))
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    again = render(avatar(headwear="hat", clothes_color="red", background="blue"))
    np.testing.assert_array_equal(first, again)
    assert tuple(first[0, 0]) == (0xB3, 0xD6, 0xFB)
    assert (np.abs(first.astype(int) - (0xD8, 0x30, 0x2C)).sum(axis=-1) < 6).mean() > 0.1


@pytest.mark.parametrize(
    ("slot", "values", "cover"),
    [
        ("hair", ("long", "bald"), {"headwear": "turban"}),
        ("hair", ("curly afro", "short"), {"headwear": "winter hat"}),
        ("hair_color", ("pink", "green"), {"hair": "bald"}),
        ("hair_color", ("pink", "green"), {"headwear": "hijab"}),
        ("eyes", ("hearts", "open"), {"glasses": "sunglasses"}),
    ],
)
def test_a_hidden_value_cannot_be_seen(slot, values, cover):
    covered = [avatar(**{slot: value}, **cover) for value in values]
    assert {label(attributes, slot) for attributes in covered} == {HIDDEN}
    np.testing.assert_array_equal(render(covered[0]), render(covered[1]))


def test_what_is_not_covered_stays_visible():
    assert label(avatar(hair="bald", facial_hair="beard", hair_color="red"), "hair_color") == "red"
    assert label(avatar(headwear="hat", clothes="hoodie"), "clothes") == "hoodie"
    assert label(avatar(headwear="hijab", clothes="hoodie"), "clothes") == HIDDEN
    assert label(avatar(glasses="glasses", eyes="wink"), "eyes") == "wink"
    assert set(COVERED_BY) == {slot for slot in SLOTS if HIDDEN in LABELS[slot]}


def test_an_edit_keeps_the_other_visible_slots():
    everything = set(NAMES)
    assert kept_slots(avatar(), "mouth", "sad") == everything - {"mouth"}
    assert kept_slots(avatar(), "glasses", "sunglasses") == everything - {"glasses", "eyes"}
    assert kept_slots(avatar(), "headwear", "hat") == everything - {
        "headwear",
        "hair",
        "hair_color",
    }
    bearded = avatar(facial_hair="beard")
    assert "hair_color" in kept_slots(bearded, "headwear", "hat")
    assert "hair_color" not in kept_slots(avatar(headwear="hat"), "facial_hair", "beard")


def test_an_edit_of_something_covered_may_uncover_it():
    hat = avatar(headwear="hat")
    assert "headwear" not in kept_slots(hat, "hair", "long")
    assert "headwear" in kept_slots(avatar(), "hair", "long")
    assert "glasses" not in kept_slots(avatar(glasses="sunglasses"), "eyes", "closed")
    assert "glasses" in kept_slots(avatar(glasses="glasses"), "eyes", "closed")


def test_implied_slots_are_those_that_an_edit_may_change_somewhere():
    assert implied("glasses", "sunglasses") == ("eyes",)
    assert set(implied("headwear", "hijab")) == {"hair", "hair_color", "clothes"}
    assert implied("hair", "long") == ("headwear",)
    assert implied("background", "blue") == ()


def test_the_command_line_writes_images_and_attributes(tmp_path):
    out = tmp_path / "new" / "avatars.npz"
    command = [sys.executable, "-m", "avatars.dataset", "--count=3", "--seed=7", f"--out={out}"]
    subprocess.run(command, check=True)
    with np.load(out) as data:
        np.testing.assert_array_equal(data["attributes"], sample(3, seed=7))
        np.testing.assert_array_equal(data["images"], np.stack([*map(render, data["attributes"])]))


@pytest.mark.parametrize(
    ("before", "slot", "value", "others"),
    [
        ({}, "glasses", "sunglasses", {}),
        ({"headwear": "hat"}, "hair", "long", {"headwear": "none"}),
        ({"headwear": "turban"}, "hair_color", "pink", {"headwear": "none"}),
        ({"glasses": "sunglasses"}, "eyes", "wink", {"glasses": "none"}),
        ({"glasses": "glasses"}, "eyes", "wink", {}),
        ({"headwear": "hijab"}, "clothes", "hoodie", {"headwear": "none"}),
    ],
)
def test_a_new_value_is_visible_and_only_its_covers_change(before, slot, value, others):
    changed = with_value(avatar(**before)[None], slot, value)[0]
    np.testing.assert_array_equal(changed, avatar(**{**before, **others, slot: value}))
    assert label(changed, slot) == value
