"""Metrics of edits, for any weights."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from styleclip_jax.io.text import Tokenizer, encode_texts
from styleclip_jax.losses import Preprocess, clip_pixels
from styleclip_jax.models.clip import CLIP

# No loss of this package uses these templates.
HELD_OUT_TEMPLATES = ("a portrait of {}", "this is {}", "an image showing {}", "{}, seen up close")

_BATCH = 64

Images = Float[Array | np.ndarray, "count height height 3"]


class CLIPMeasure:
    """Measures with a CLIP how edits changed the similarity of images to texts.

    Args:
        clip: The CLIP.
        tokenizer: Its tokenizer.
        texts: All texts to measure; features of a text are averaged over the templates.
        images: The images before the edits, in [-1, 1].
        preprocess: Preprocessing of the CLIP; see :func:`styleclip_jax.losses.clip_pixels`.
    """

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        images: Images,
        preprocess: Preprocess,
    ):
        self._clip, self._preprocess = clip, preprocess
        self._before = self._embed(images)
        prompts = [template.format(text) for text in texts for template in HELD_OUT_TEMPLATES]
        vectors = _unit(np.asarray(encode_texts(clip, tokenizer, prompts)))
        means = _unit(vectors.reshape(len(texts), len(HELD_OUT_TEMPLATES), -1).mean(1))
        self._texts = dict(zip(texts, means, strict=True))

    def __call__(self, images: Images, text: str, anchors: Sequence[str]) -> dict[str, float]:
        """Measures edited images; see :func:`gain_and_drift`."""
        vectors = np.stack([self._texts[anchor] for anchor in anchors])
        return gain_and_drift(self._before, self._embed(images), self._texts[text], vectors)

    def _embed(self, images: Images) -> Float[np.ndarray, "count embed"]:
        """Unit vectors of images, computed in batches of one size."""
        vectors = []
        for start in range(0, len(images), _BATCH):
            batch = np.asarray(images[start : start + _BATCH])
            padding = ((0, min(_BATCH, len(images)) - len(batch)), (0, 0), (0, 0), (0, 0))
            encoded = _encode(self._clip, np.pad(batch, padding), self._preprocess)
            vectors.append(np.asarray(encoded)[: len(batch)])
        return _unit(np.concatenate(vectors))


@functools.partial(jax.jit, static_argnames="preprocess")
def _encode(clip: CLIP, images: Array, preprocess: Preprocess) -> Float[Array, "count embed"]:
    return clip.encode_image(clip_pixels(images, clip.config.image_size, preprocess))


def relative_change(
    before: Float[np.ndarray, "count texts"], after: Float[np.ndarray, "count texts"]
) -> Float[np.ndarray, "count texts"]:
    """The change of the similarities of images to texts, in units of their range before the edit.

    The range of similarities differs between texts, so plain differences are not comparable.

    Args:
        before: Cosines of at least two images that differ.
        after: Cosines of the same images after the edit.
    """
    return (after - before) / np.ptp(before, axis=0)


def gain_and_drift(
    before: Float[np.ndarray, "count embed"],
    after: Float[np.ndarray, "count embed"],
    target: Float[np.ndarray, " embed"],
    anchors: Float[np.ndarray, "anchors embed"],
) -> dict[str, float]:
    """How much edited images moved towards the text, and how much else changed.

    Drift over gain is the metric of Predict, Prevent and Evaluate (Xu et al., CVPR 2022): the
    change of the similarity to unrelated texts, relative to the change of the similarity to the
    target. The caller divides, because both parts may be averaged first.

    Args:
        before: Unit CLIP features of the images before the edit.
        after: Unit CLIP features of the edited images.
        target: Unit features of the text.
        anchors: Unit features of texts about other attributes.

    Returns:
        Means over images. ``gain``: change of the cosine to the text. ``relative_gain``: the same
        by :func:`relative_change`. ``drift``: absolute relative change of the cosines to the
        anchors.
    """
    texts = np.concatenate([target[None], anchors])
    change = relative_change(before @ texts.T, after @ texts.T)
    return {
        "gain": float(((after - before) @ target).mean()),
        "relative_gain": float(change[:, 0].mean()),
        "drift": float(np.abs(change[:, 1:]).mean()),
    }


def pixel_change(before: Images, after: Images) -> float:
    """Mean absolute change of the pixels, relative to their range."""
    return float(np.abs(np.clip(after, -1, 1) - np.clip(before, -1, 1)).mean() / 2)


def summary(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Means over wordings and over tasks of measurements by task and wording."""
    means = {name: _mean(rows.values()) for name, rows in figures.items()}
    return {
        "mean": _with_ratios(_mean(means.values())),
        "texts": {
            name: {
                "mean": _with_ratios(means[name]),
                "wordings": {text: _with_ratios(row) for text, row in rows.items()},
            }
            for name, rows in figures.items()
        },
    }


def _mean(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means of measurements by name, each over the rows that have it."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: fmean(row[name] for row in rows if name in row) for name in names}


def _with_ratios(figures: Mapping[str, float]) -> dict[str, float]:
    """Adds drift over gain if the gain is positive."""
    ratios = {
        f"{clip}_drift_over_gain": figures[f"{clip}_drift"] / figures[f"{clip}_relative_gain"]
        for clip in ("clip", "judge_clip")
        if figures.get(f"{clip}_relative_gain", 0) > 0
    }
    return {**figures, **ratios}


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
