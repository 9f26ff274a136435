"""What edits did to images, for any weights: measured, not minimized."""

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

# No loss of this package sees a text in one of these.
HELD_OUT_TEMPLATES = ("a portrait of {}", "this is {}", "an image showing {}", "{}, seen up close")

_BATCH = 64

Images = Float[Array | np.ndarray, "count height height 3"]


class CLIPMeasure:
    """Measures by a CLIP how edited images moved in their similarity to texts.

    Args:
        clip: The CLIP.
        tokenizer: Its tokenizer.
        texts: All texts that will be asked for; each stands for the mean over the templates.
        images: The images before the edits, in [-1, 1].
        preprocess: What the CLIP was trained with; see :func:`styleclip_jax.losses.clip_pixels`.
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
        """See :func:`gain_and_drift`; ``images`` are the edited ones."""
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
    """By how much similarities of images to texts changed, in units of their range before.

    Texts differ in how far apart images are in their similarity, which makes plain differences
    incomparable.

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
    """How much closer edited images are to the text, and what else changed.

    Drift over gain is the measure of Predict, Prevent and Evaluate (Xu et al., CVPR 2022): how much
    the images' similarities to texts that the edit is not about changed, as a share of how much the
    one to the target did. It is left to the caller, who may want to average both parts first.

    Args:
        before: Unit CLIP vectors of the images before.
        after: Those of the edited images.
        target: That of the text.
        anchors: Those of texts about other attributes.

    Returns:
        Means over images. ``gain``: change of the cosine to the text. ``relative_gain``: likewise,
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
    """Mean absolute change of the pixels, as a share of their range."""
    return float(np.abs(np.clip(after, -1, 1) - np.clip(before, -1, 1)).mean() / 2)


def summary(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Means of what was measured by task and wording: over wordings, and over tasks."""
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
    """Means of figures by name, each over the rows that have it."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: fmean(row[name] for row in rows if name in row) for name in names}


def _with_ratios(figures: Mapping[str, float]) -> dict[str, float]:
    """Adds drift over gain, of means where the figures are means; none where nothing is gained."""
    ratios = {
        f"{clip}_drift_over_gain": figures[f"{clip}_drift"] / figures[f"{clip}_relative_gain"]
        for clip in ("clip", "judge_clip")
        if figures.get(f"{clip}_relative_gain", 0) > 0
    }
    return {**figures, **ratios}


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
