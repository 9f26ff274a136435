"""Attributes of avatars: a table, their sampling, and their visibility.

An image is described by one integer per slot, the index of its value in `SLOTS[slot]`. Arrays of
attributes have the slots in the order of `SLOTS` along their last axis.

Some attributes are not visible: a hat covers the hair, sunglasses cover the eyes. The *labels* of
an image are its attributes with `hidden` in place of covered ones. The classifier predicts labels,
captions may state them, and edits must preserve them.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int8


class Value(NamedTuple):
    """One value of a slot: its sampling probability and its DiceBear "avataaars" options."""

    weight: float
    options: dict[str, Any]


def _hair(color: str) -> dict[str, Any]:
    return {"hairColor": color, "facialHairColor": color}


def _clothes(color: str) -> dict[str, Any]:
    return {"clothesColor": color, "hatColor": color}


def _top(variant: str) -> dict[str, Any]:
    return {"topVariant": variant, "topProbability": 100}


def _glasses(variant: str) -> dict[str, Any]:
    return {"accessoriesVariant": variant, "accessoriesProbability": 100}


def _facial_hair(variant: str) -> dict[str, Any]:
    return {"facialHairVariant": variant, "facialHairProbability": 100}


# Larger and lower than the style's default, so that hair fills the top and the face is legible at
# 64 x 64 pixels; options of no slot are the same in every image.
FIXED_OPTIONS: dict[str, Any] = {
    "scale": 1.15,
    "translateY": 7.5,
    "eyebrowsVariant": "defaultNatural",
    "noseVariant": "default",
    "accessoriesColor": "#262e33",
}

# Options of later slots overrule those of earlier ones: headwear replaces the hair.
SLOTS: dict[str, dict[str, Value]] = {
    "hair": {
        "short": Value(0.24, _top("shortFlat")),
        "long": Value(0.22, _top("straight02")),
        "curly afro": Value(0.14, _top("fro")),
        "bun": Value(0.14, _top("bun")),
        "dreadlocks": Value(0.13, _top("dreads")),
        "bald": Value(0.13, {"topProbability": 0}),
    },
    "hair_color": {
        "black": Value(0.16, _hair("#211c1c")),
        "brown": Value(0.16, _hair("#7b4a26")),
        "blond": Value(0.14, _hair("#efcb5f")),
        "red": Value(0.10, _hair("#cf4a14")),
        "gray": Value(0.10, _hair("#a9a9ad")),
        "pink": Value(0.08, _hair("#f27fb4")),
        "purple": Value(0.09, _hair("#8a3fb5")),
        "blue": Value(0.09, _hair("#3566dd")),
        "green": Value(0.08, _hair("#3c9a45")),
    },
    "headwear": {
        "none": Value(0.64, {}),
        "hat": Value(0.09, _top("hat")),
        "winter hat": Value(0.09, _top("winterHat03")),
        "turban": Value(0.09, _top("turban")),
        "hijab": Value(0.09, _top("hijab")),
    },
    "glasses": {
        "none": Value(0.60, {"accessoriesProbability": 0}),
        "glasses": Value(0.20, _glasses("prescription01")),
        "sunglasses": Value(0.20, _glasses("kurt")),
    },
    "facial_hair": {
        "none": Value(0.60, {"facialHairProbability": 0}),
        "beard": Value(0.22, _facial_hair("beardMedium")),
        "moustache": Value(0.18, _facial_hair("moustacheFancy")),
    },
    "mouth": {
        "smiling": Value(0.30, {"mouthVariant": "smile"}),
        "serious": Value(0.20, {"mouthVariant": "serious"}),
        "sad": Value(0.17, {"mouthVariant": "sad"}),
        "open": Value(0.17, {"mouthVariant": "screamOpen"}),
        "tongue": Value(0.16, {"mouthVariant": "tongue"}),
    },
    "eyes": {
        "open": Value(0.40, {"eyesVariant": "default"}),
        "closed": Value(0.16, {"eyesVariant": "closed"}),
        "surprised": Value(0.15, {"eyesVariant": "surprised"}),
        "wink": Value(0.15, {"eyesVariant": "wink"}),
        "hearts": Value(0.14, {"eyesVariant": "hearts"}),
    },
    "skin": {
        "pale": Value(0.28, {"skinColor": "#ffdfc8"}),
        "tanned": Value(0.26, {"skinColor": "#e8ac77"}),
        "brown": Value(0.23, {"skinColor": "#b5713f"}),
        "dark": Value(0.23, {"skinColor": "#5a3827"}),
    },
    "clothes": {
        "t-shirt": Value(0.30, {"clothesVariant": "shirtCrewNeck"}),
        "hoodie": Value(0.25, {"clothesVariant": "hoodie"}),
        "blazer": Value(0.23, {"clothesVariant": "blazerAndShirt"}),
        "overall": Value(0.22, {"clothesVariant": "overall"}),
    },
    "clothes_color": {
        "black": Value(0.16, _clothes("#29292e")),
        "white": Value(0.14, _clothes("#fafafa")),
        "red": Value(0.14, _clothes("#d8302c")),
        "blue": Value(0.14, _clothes("#2f6fd6")),
        "green": Value(0.14, _clothes("#2c9a4b")),
        "yellow": Value(0.14, _clothes("#f6c626")),
        "pink": Value(0.14, _clothes("#f77fb3")),
    },
    "background": {
        "gray": Value(0.17, {"backgroundColor": "#c3c8cf"}),
        "blue": Value(0.17, {"backgroundColor": "#b3d6fb"}),
        "green": Value(0.17, {"backgroundColor": "#bde8be"}),
        "yellow": Value(0.17, {"backgroundColor": "#fdf0ab"}),
        "pink": Value(0.16, {"backgroundColor": "#fdcfe0"}),
        "purple": Value(0.16, {"backgroundColor": "#d6c6f6"}),
    },
}

NAMES: tuple[str, ...] = tuple(SLOTS)
HIDDEN = "hidden"
# In place of unknown labels.
UNKNOWN = -1

# Slots that can be covered, and the slots that must change to uncover them.
COVERED_BY: dict[str, tuple[str, ...]] = {
    "hair": ("headwear",),
    "hair_color": ("headwear", "hair", "facial_hair"),
    "eyes": ("glasses",),
    "clothes": ("headwear",),
}

# Labels of each slot: its values and, if it can be covered, `hidden` as the last.
LABELS: dict[str, tuple[str, ...]] = {
    slot: (*values, HIDDEN) if slot in COVERED_BY else tuple(values)
    for slot, values in SLOTS.items()
}


def index(slot: str, value: str) -> int:
    """Returns the integer of a value, or of `hidden`, in arrays of attributes."""
    return LABELS[slot].index(value)


def sample(count: int, seed: int | Sequence[int]) -> Int8[np.ndarray, "count slots"]:
    """Samples the attributes of `count` images, every slot independently by its weights."""
    rng = np.random.default_rng(seed)
    columns = [
        rng.choice(len(values), size=count, p=[value.weight for value in values.values()])
        for values in SLOTS.values()
    ]
    return np.stack(columns, axis=-1).astype(np.int8)


def dicebear_options(attributes: Int8[np.ndarray, " slots"]) -> dict[str, Any]:
    """Returns the complete DiceBear options of one image; none depend on DiceBear's seed."""
    options = dict(FIXED_OPTIONS)
    for values, chosen in zip(SLOTS.values(), attributes, strict=True):
        options |= list(values.values())[chosen].options
    return options


def observe(attributes: Int8[np.ndarray, "count slots"]) -> Int8[np.ndarray, "count slots"]:
    """Returns the labels of images: their attributes, with `hidden` for covered ones.

    Args:
        attributes: Attributes as from `sample`.

    Returns:
        Indices into `LABELS`.
    """
    column = dict(zip(NAMES, attributes.T, strict=True))
    hair_hidden = column["headwear"] != index("headwear", "none")
    no_hair = hair_hidden | (column["hair"] == index("hair", "bald"))
    hidden = {
        "hair": hair_hidden,
        "hair_color": no_hair & (column["facial_hair"] == index("facial_hair", "none")),
        "eyes": column["glasses"] == index("glasses", "sunglasses"),
        "clothes": column["headwear"] == index("headwear", "hijab"),
    }
    labels = attributes.copy()
    for slot, covered in hidden.items():
        labels[covered, NAMES.index(slot)] = index(slot, HIDDEN)
    return labels


def kept(
    labels: Int8[np.ndarray, "count slots"], slot: str, value: str
) -> Bool[np.ndarray, "count slots"]:
    """Returns which labels an edit that gives `slot` a new value must preserve in each image.

    Excluded are the edited slot, labels that are hidden before or after the edit, and labels that
    must change to make the new value visible, such as headwear if a person gets long hair.

    Args:
        labels: Labels before the edit, as from `observe`.
        slot: The edited slot.
        value: Its new value.
    """
    position = NAMES.index(slot)
    attributes = labels.copy()
    for name in COVERED_BY:
        attributes[labels[:, NAMES.index(name)] == index(name, HIDDEN), NAMES.index(name)] = 0
    attributes[:, position] = index(slot, value)
    edited = observe(attributes)
    keep = edited == labels
    for name in COVERED_BY:
        keep[:, NAMES.index(name)] &= labels[:, NAMES.index(name)] != index(name, HIDDEN)
    keep[:, position] = False
    still_covered = edited[:, position] != index(slot, value)
    for name in COVERED_BY.get(slot, ()):
        keep[still_covered, NAMES.index(name)] = False
    return keep


def with_value(
    attributes: Int8[np.ndarray, "count slots"], slot: str, value: str
) -> Int8[np.ndarray, "count slots"]:
    """Returns attributes with a new value in one slot, and without what would cover it.

    Args:
        attributes: Attributes as from `sample`.
        slot: The slot to change.
        value: Its new value.
    """
    position = NAMES.index(slot)
    changed = attributes.copy()
    changed[:, position] = index(slot, value)
    for cover in COVERED_BY.get(slot, ()):
        if "none" in SLOTS[cover]:
            hidden = observe(changed)[:, position] != index(slot, value)
            changed[hidden, NAMES.index(cover)] = index(cover, "none")
    return changed


def with_other_values(
    attributes: Int8[np.ndarray, "count slots"],
    slots: Int[np.ndarray, " count"],
    rng: np.random.Generator,
) -> Int8[np.ndarray, "count slots"]:
    """Returns attributes with another value, chosen uniformly, in one slot of each row.

    Args:
        attributes: Attributes as from `sample`.
        slots: The slot to change in each row, as an index into NAMES.
        rng: The rng that chooses the values.
    """
    rows = np.arange(len(attributes))
    sizes = np.array([len(values) for values in SLOTS.values()])[slots]
    changed = attributes.copy()
    changed[rows, slots] = (attributes[rows, slots] + rng.integers(1, sizes)) % sizes
    return changed


@functools.cache
def implied(slot: str, value: str) -> tuple[str, ...]:
    """Returns the slots whose label an edit to `value` may legitimately change in some image."""
    labels = observe(sample(2000, seed=0))
    given_way = ~kept(labels, slot, value)
    return tuple(
        name
        for i, name in enumerate(NAMES)
        if name != slot and (given_way[:, i] & (labels[:, i] < len(SLOTS[name]))).any()
    )
