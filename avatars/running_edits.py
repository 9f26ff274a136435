"""Edits that go on while a CLIP is trained, and show it what its gradient leads to.

Gradient descent on the similarity to a text finds pictures that no drawing resembles: half of an
attribute, colours that spread, everything else blended away, since the less a picture shows of what
the text does not name, the better it fits in cosine. So those pictures are part of the training
(adversarial training, Madry et al., arXiv 1706.06083, in W+). Attacks of a few large steps are too
weak: an optimization of a hundred small ones ends elsewhere. Here groups of edits take turns; each
moves on by a few steps when it is its turn, judged by the CLIP as it is by then, until it is old
and begins anew with other faces and texts.

A classifier says what the pictures show; it must not be the one that judges the models in the end.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from avatars.attributes import LABELS, NAMES, SLOTS, implied, index, observe, sample, with_value
from avatars.captions import prompts
from avatars.classifier import Classifier, probabilities
from avatars.generated import disturbed_latents
from styleclip_jax.io.images import to_uint8
from styleclip_jax.io.text import Tokenizer
from styleclip_jax.latents import draw, squared_distance
from styleclip_jax.losses import clip_loss
from styleclip_jax.models import CLIP, Generator

GROUPS = 6
STEPS_PER_TURN = 2
# The settings of an edit are drawn from these ranges, evenly in the logarithm.
STEPS = (8, 120)
LEARNING_RATE = (0.3, 2.0)
L2_LAMBDA = (0.004, 0.012)

# In place of a label where nobody knows what a picture shows.
UNKNOWN = -1
# An attribute that the edit should leave alone is what it was unless the classifier finds that
# less probable than this; what else it shows counts where it is at least so probable.
LEAST_LEFT, LEAST_CERTAIN = 0.1, 0.8

_ADAM = optax.scale_by_adam()


class Targets(NamedTuple):
    """A text about one attribute for each picture; it may be right already.

    Attributes:
        texts: The texts.
        slots: The attributes that they are about, as positions in NAMES.
        values: What these should be.
        wanted: Attributes of pictures that fit the texts and are otherwise the same.
        rises: Where those fit and the pictures themselves do not.
    """

    texts: list[str]
    slots: Int[np.ndarray, " batch"]
    values: Int[np.ndarray, " batch"]
    wanted: Int[np.ndarray, "batch slots"]
    rises: Bool[np.ndarray, " batch"]


def choose_targets(
    attributes: Int[np.ndarray, "batch slots"], random: np.random.Generator
) -> Targets:
    """Chooses a text for each picture."""
    texts, slots, values, wanted = [], [], [], []
    for row in attributes:
        slot = random.choice(NAMES)
        value = random.choice(list(SLOTS[slot]))
        texts.append(random.choice(prompts(slot, value)))
        slots.append(NAMES.index(slot))
        values.append(index(slot, value))
        wanted.append(with_value(row[None], slot, value)[0])
    slots, values, wanted = np.array(slots), np.array(values), np.stack(wanted)
    fits, will_fit = (
        np.take_along_axis(observe(x), slots[:, None], 1)[:, 0] == values
        for x in (attributes, wanted)
    )
    return Targets(texts, slots, values, wanted, will_fit & ~fits)


def merge_labels(
    attributes: Int[np.ndarray, "batch slots"],
    targets: Targets,
    seen: dict[str, Float[np.ndarray, "batch labels"]],
) -> Int[np.ndarray, "batch slots"]:
    """What pictures show in the middle of an edit: labels, or UNKNOWN.

    Args:
        attributes: What they showed before.
        targets: What the edit is to make of them.
        seen: Probabilities by a classifier, as `avatars.classifier.probabilities` gives them.
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


class _Group(NamedTuple):
    attributes: Int[np.ndarray, "batch slots"]
    targets: Targets
    tokens: Int[Array, "batch context"]
    start: Float[Array, "batch layers w_dim"]
    latents: Float[Array, "batch layers w_dim"]
    optimizer: optax.OptState
    learning_rate: float
    l2_lambda: float
    turns_left: int


class Shown(NamedTuple):
    """Pictures of edits, what they show, and what the edits are about."""

    images: UInt8[np.ndarray, "batch 64 64 3"]
    labels: Int[np.ndarray, "batch slots"]
    targets: Targets


@partial(jax.jit, static_argnames="steps")
def _advance(clip, generator, tokens, start, latents, optimizer, rate, l2_lambda, steps):
    texts = clip.encode_text(tokens)

    def loss(latents):
        judged = clip_loss(clip, draw(generator, latents), texts)
        return (judged + l2_lambda * squared_distance(latents, start)).sum()

    for _ in range(steps):
        directions, optimizer = _ADAM.update(jax.grad(loss)(latents), optimizer)
        latents = latents - rate * directions
    return latents, optimizer, draw(generator, latents)


class RunningEdits:
    """The groups of edits.

    Args:
        generator: Draws the pictures.
        labeller: Says what they show.
        tokenizer: Of the CLIP.
        size: Edits in a group.
        seed: Of faces, texts and settings.
    """

    def __init__(
        self,
        generator: Generator,
        labeller: Classifier,
        tokenizer: Tokenizer,
        size: int,
        seed: int,
    ):
        self._generator, self._labeller, self._tokenizer = generator, labeller, tokenizer
        self._size, self._seed = size, seed
        self._groups: list[_Group | None] = [None] * GROUPS

    def advance(self, clip: CLIP, turn: int) -> Shown:
        """Moves the group on whose turn it is."""
        group = self._groups[turn % GROUPS] or self._begin(turn)
        *state, pictures = _advance(clip, self._generator, *group[2:-1], steps=STEPS_PER_TURN)
        group = group._replace(
            latents=state[0], optimizer=state[1], turns_left=group.turns_left - 1
        )
        self._groups[turn % GROUPS] = group if group.turns_left else None
        pictures = np.clip(np.asarray(pictures), -1, 1)
        seen = probabilities(self._labeller, pictures)
        labels = merge_labels(group.attributes, group.targets, seen)
        return Shown(to_uint8(pictures), labels, group.targets)

    def _begin(self, turn: int) -> _Group:
        random = np.random.default_rng([self._seed, turn])
        steps, learning_rate, l2_lambda = (
            float(np.exp(random.uniform(*np.log(bounds))))
            for bounds in (STEPS, LEARNING_RATE, L2_LAMBDA)
        )
        attributes = sample(self._size, [self._seed, turn])
        targets = choose_targets(attributes, random)
        latents = _disturbed(attributes, jax.random.fold_in(jax.random.key(self._seed), turn))
        return _Group(
            attributes,
            targets,
            jnp.asarray(self._tokenizer(targets.texts)),
            latents,
            latents,
            _ADAM.init(latents),
            learning_rate,
            l2_lambda,
            -(-int(steps) // STEPS_PER_TURN),
        )


_disturbed = jax.jit(disturbed_latents)
