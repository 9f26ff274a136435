"""Edits that run during the training of a CLIP and provide adversarial examples.

Gradient descent on a CLIP's loss finds images unlike rendered ones: parts of an attribute, colors
that spread, other attributes that change too. Such images are therefore part of the training
(adversarial training, Madry et al., arXiv 1706.06083, in W+). Attacks of a few large steps are too
weak, because an optimization of a hundred small steps leads to other images. Here, groups of edits
take turns: each turn advances a group by a few steps with the current CLIP. A group that has taken
all its steps is replaced by one with other faces and texts.

A classifier annotates the images; it must not be the one used for evaluation.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from avatars.attributes import (
    LABELS,
    NAMES,
    SLOTS,
    UNKNOWN,
    implied,
    index,
    observe,
    sample,
    with_value,
)
from avatars.captions import about, choose_language, fits, neutral, truths
from avatars.classifier import Classifier, probabilities
from avatars.perturbation import perturbed_latents
from styleclip_jax.io.images import to_uint8
from styleclip_jax.io.text import Tokenizer
from styleclip_jax.latents import squared_distance, synthesize
from styleclip_jax.losses import clip_pixels, direction_loss
from styleclip_jax.models import CLIP, Generator

GROUPS = 6
STEPS_PER_TURN = 3
# The settings of an edit are sampled log-uniformly from these ranges.
STEPS = (10, 120)
LEARNING_RATE = (0.05, 1.0)
L2_LAMBDA = (0.0005, 0.01)
ORTHOGONAL_LAMBDA = (0.2, 2.0)

# An attribute to preserve keeps its label unless its probability is lower than the first value;
# another label replaces it if its probability is at least the second value.
LEAST_LEFT, LEAST_CERTAIN = 0.1, 0.8

_ADAM = optax.scale_by_adam()


class Targets(NamedTuple):
    """A text about one attribute for each image; the image may match it already.

    Attributes:
        texts: The texts.
        slots: The attributes of the texts, as indices into NAMES.
        values: Their requested values.
        truths: Labels for which the texts are true, from `avatars.captions.truths`.
        wanted: Attributes of images that match the texts and are otherwise the same.
        rises: Whether those match the text but the images themselves do not.
    """

    texts: list[str]
    slots: Int[np.ndarray, " batch"]
    values: Int[np.ndarray, " batch"]
    truths: Float[np.ndarray, "batch slots labels"]
    wanted: Int[np.ndarray, "batch slots"]
    rises: Bool[np.ndarray, " batch"]


def choose_targets(
    attributes: Int[np.ndarray, "batch slots"], rng: np.random.Generator, ukrainian: float
) -> Targets:
    """Chooses a text for each image; a share of `ukrainian` of them are Ukrainian."""
    texts, meanings, slots, values, wanted = [], [], [], [], []
    for row in attributes:
        slot = rng.choice(NAMES)
        value = rng.choice(list(SLOTS[slot]))
        text, meaning = about(slot, value, rng, choose_language(rng, ukrainian))
        texts.append(text)
        meanings.append(meaning)
        slots.append(NAMES.index(slot))
        values.append(index(slot, value))
        wanted.append(with_value(row[None], slot, value)[0])
    slots, values, wanted = np.array(slots), np.array(values), np.stack(wanted)
    told = truths(meanings)
    fit, will_fit = (fits(told, observe(x)).diagonal() == 1 for x in (attributes, wanted))
    return Targets(texts, slots, values, told, wanted, will_fit & ~fit)


def merge_labels(
    attributes: Int[np.ndarray, "batch slots"],
    targets: Targets,
    seen: dict[str, Float[np.ndarray, "batch labels"]],
) -> Int[np.ndarray, "batch slots"]:
    """The labels of images during an edit, or UNKNOWN.

    Args:
        attributes: Their attributes before the edit.
        targets: The targets of the edit.
        seen: Probabilities by a classifier, from `avatars.classifier.probabilities`.
    """
    labels = observe(attributes)
    for row, slot, value in zip(labels, targets.slots, targets.values, strict=True):
        name = NAMES[slot]
        may_change = (name, *implied(name, list(SLOTS[name])[value]))
        row[[NAMES.index(other) for other in may_change]] = UNKNOWN
    for i, name in enumerate(LABELS):
        best, certain = seen[name].argmax(-1), seen[name].max(-1) >= LEAST_CERTAIN
        left = np.take_along_axis(seen[name], np.maximum(labels[:, i : i + 1], 0), 1)[:, 0]
        stays = (labels[:, i] != UNKNOWN) & (left >= LEAST_LEFT)
        labels[:, i] = np.where(stays, labels[:, i], np.where(certain, best, UNKNOWN))
    return labels


class _Settings(NamedTuple):
    learning_rate: float
    l2_lambda: float
    orthogonal_lambda: float


class _Edits(NamedTuple):
    """The arrays of a group of edits."""

    tokens: Int[Array, "batch context"]
    neutral_tokens: Int[Array, "1 context"]
    start: Float[Array, "batch layers w_dim"]
    latents: Float[Array, "batch layers w_dim"]
    optimizer: optax.OptState


class _Group(NamedTuple):
    attributes: Int[np.ndarray, "batch slots"]
    targets: Targets
    settings: _Settings
    edits: _Edits
    turns_left: int


class Shown(NamedTuple):
    """Images of edits at CLIP's input size, their labels, and the targets of the edits."""

    images: UInt8[np.ndarray, "batch 64 64 3"]
    labels: Int[np.ndarray, "batch slots"]
    targets: Targets


@partial(jax.jit, static_argnames="steps")
def _advance(clip, generator, edits, settings, steps):
    """Takes steps; returns the edits and their images, small and at full resolution."""
    size = clip.config.image_size
    texts, neutral_text = clip.encode_text(edits.tokens), clip.encode_text(edits.neutral_tokens)

    def features(latents):
        return clip.encode_image(clip_pixels(synthesize(generator, latents, size), size))

    before = features(edits.start)

    def loss(latents):
        weight = settings.orthogonal_lambda
        guidance = direction_loss(features(latents), before, texts, neutral_text, weight)
        return (guidance + settings.l2_lambda * squared_distance(latents, edits.start)).sum()

    latents, optimizer = edits.latents, edits.optimizer
    for _ in range(steps):
        updates, optimizer = _ADAM.update(jax.grad(loss)(latents), optimizer)
        latents = latents - settings.learning_rate * updates
    styles = generator.styles(latents)
    *_, small, image = generator.synthesis.skip_images(styles, generator.config.resolution)
    return edits._replace(latents=latents, optimizer=optimizer), small, image


class RunningEdits:
    """The groups of edits.

    Args:
        generator: Synthesizes the images.
        annotator: Labels the images.
        tokenizer: Tokenizer of the CLIP.
        size: Number of edits in a group.
        seed: Seed of faces, texts and settings.
        ukrainian: Share of Ukrainian texts.
    """

    def __init__(
        self,
        generator: Generator,
        annotator: Classifier,
        tokenizer: Tokenizer,
        size: int,
        seed: int,
        ukrainian: float,
    ):
        self._generator, self._annotator, self._tokenizer = generator, annotator, tokenizer
        self._size, self._seed, self._ukrainian = size, seed, ukrainian
        self._groups: list[_Group | None] = [None] * GROUPS

    def advance(self, clip: CLIP, turn: int) -> Shown:
        """Advances one group of edits."""
        group = self._groups[turn % GROUPS] or self._begin(turn)
        edits, small, images = _advance(
            clip, self._generator, group.edits, group.settings, steps=STEPS_PER_TURN
        )
        group = group._replace(edits=edits, turns_left=group.turns_left - 1)
        self._groups[turn % GROUPS] = group if group.turns_left else None
        seen = probabilities(self._annotator, np.clip(np.asarray(images), -1, 1))
        labels = merge_labels(group.attributes, group.targets, seen)
        return Shown(to_uint8(small), labels, group.targets)

    def _begin(self, turn: int) -> _Group:
        rng = np.random.default_rng([self._seed, turn])
        steps, *settings = (
            float(np.exp(rng.uniform(*np.log(bounds))))
            for bounds in (STEPS, LEARNING_RATE, L2_LAMBDA, ORTHOGONAL_LAMBDA)
        )
        attributes = sample(self._size, [self._seed, turn])
        targets = choose_targets(attributes, rng, self._ukrainian)
        latents = _perturbed(attributes, jax.random.fold_in(jax.random.key(self._seed), turn))
        edits = _Edits(
            jnp.asarray(self._tokenizer(targets.texts)),
            jnp.asarray(self._tokenizer([neutral(rng, choose_language(rng, self._ukrainian))])),
            latents,
            latents,
            _ADAM.init(latents),
        )
        turns = -(-int(steps) // STEPS_PER_TURN)
        return _Group(attributes, targets, _Settings(*settings), edits, turns)


_perturbed = jax.jit(perturbed_latents)
