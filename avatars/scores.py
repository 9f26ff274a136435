"""Scores of edits by the classifier's labels before and after."""

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from avatars.attributes import NAMES, index, kept
from avatars.classifier import Classifier, predict


def read_labels(
    classifier: Classifier, images: Float[Array | np.ndarray, "count size size 3"]
) -> Int[np.ndarray, "count slots"]:
    """The classifier's labels of images, in the format of `avatars.attributes.observe`."""
    predicted = predict(classifier, np.clip(images, -1, 1))
    return np.stack([predicted[name] for name in NAMES], axis=-1).astype(np.int8)


def shows(
    labels: Int[np.ndarray, "count slots"], slot: str, value: str
) -> Bool[np.ndarray, " count"]:
    """Which images show the value."""
    return labels[:, NAMES.index(slot)] == index(slot, value)


def edit_score(
    before: Int[np.ndarray, "count slots"],
    after: Int[np.ndarray, "count slots"],
    slot: str,
    value: str,
) -> dict[str, float]:
    """Scores edits that should give `slot` a new value.

    Args:
        before: Labels of the images before the edit.
        after: Labels of the edited images.
        slot: The slot that the text describes.
        value: Its requested value.

    Returns:
        Shares in [0, 1]. ``before`` and ``target``: images that show the value before and after.
        ``others``: labels to preserve, according to `kept`, that did not change. ``whole``: images
        that show the value and preserve all such labels.
    """
    must_stay = kept(before, slot, value)
    stayed = before == after
    target = shows(after, slot, value)
    return {
        "before": float(shows(before, slot, value).mean()),
        "target": float(target.mean()),
        "others": float(stayed[must_stay].mean()),
        "whole": float((target & (stayed | ~must_stay).all(-1)).mean()),
    }


def kept_by_slot(
    before: Int[np.ndarray, "count slots"],
    after: Int[np.ndarray, "count slots"],
    slot: str,
    value: str,
) -> dict[str, float]:
    """The share ``others`` of :func:`edit_score` for every slot to preserve in some image."""
    must_stay = kept(before, slot, value)
    stayed = before == after
    return {
        name: float(stayed[must_stay[:, i], i].mean())
        for i, name in enumerate(NAMES)
        if must_stay[:, i].any()
    }
