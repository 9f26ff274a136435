"""Classifies the attributes of avatars, to evaluate generated and edited images.

    python -m avatars.classifier --train train.npz --test test.npz --out classifier.npz

`avatars/classifier.npz` was trained by this command.

A small convolutional network with one softmax per slot over its labels (including `hidden`). It is
trained on rendered avatars only and independent of the evaluated CLIP. Blur, noise, brightness and
shifts in training make it robust to the differences between generated and rendered images.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from scipy.special import softmax

from avatars.attributes import LABELS, observe
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS
WIDTHS = (64, 96, 128)
FEATURES = 256
MAX_SHIFT = 4
BATCH = 128
# Batches of fewer images are padded to a multiple of this number.
_MULTIPLE = 16
TRAINED = Path(__file__).with_name("classifier.npz")
_SPLITS = tuple(int(end) for end in np.cumsum([len(labels) for labels in LABELS.values()])[:-1])


class PatchConvolution(nnx.Module):
    """A 3x3 convolution with stride 2 and ReLU, computed as one matrix product over patches.

    XLA's gradient of a convolution's kernel is many times slower than that of a matrix product on
    a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(
            9 * in_channels, out_channels, kernel_init=nnx.initializers.he_normal(), rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "batch height width in_channels"]
    ) -> Float[Array, "batch height//2 width//2 out_channels"]:
        """Convolves; height and width are even."""
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [
            x[:, row : row + height : 2, column : column + width : 2]
            for row in range(3)
            for column in range(3)
        ]
        return nnx.relu(self.linear(jnp.concatenate(patches, axis=-1)))


class Classifier(nnx.Module):
    """Maps 128 x 128 images in [-1, 1] to the concatenated logits of all slots."""

    def __init__(self, *, rngs: nnx.Rngs):
        channels = (48, *WIDTHS)
        self.convolutions = nnx.List(
            PatchConvolution(channels[i], channels[i + 1], rngs=rngs) for i in range(len(WIDTHS))
        )
        self.hidden = nnx.Linear(
            4 * 4 * WIDTHS[-1], FEATURES, kernel_init=nnx.initializers.he_normal(), rngs=rngs
        )
        self.heads = nnx.Linear(FEATURES, sum(map(len, LABELS.values())), rngs=rngs)

    def features(self, images: Float[Array, "batch 128 128 3"]) -> Float[Array, "batch features"]:
        """Returns the penultimate layer."""
        batch = images.shape[0]
        x = images.reshape(batch, 32, 4, 32, 4, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, 32, 32, 48)
        for convolution in self.convolutions:
            x = convolution(x)
        return nnx.relu(self.hidden(x.reshape(batch, -1)))

    def __call__(self, images: Float[Array, "batch 128 128 3"]) -> Float[Array, "batch labels"]:
        """Returns the logits."""
        return self.heads(self.features(images))


def augment(images: Float[Array, "batch 128 128 3"], key: Array) -> Float[Array, "batch 128 128 3"]:
    """Slightly shifts, blurs, and brightens or darkens each image, and adds noise."""
    size = images.shape[1]
    shift_key, blur_key, gain_key, offset_key, level_key, noise_key = jax.random.split(key, 6)
    per_image = (len(images), 1, 1, 1)
    pad = ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0))
    shifts = jax.random.randint(shift_key, (len(images), 2), 0, 2 * MAX_SHIFT + 1)
    images = jax.vmap(
        lambda image, shift: jax.lax.dynamic_slice(image, (*shift, 0), (size, size, 3))
    )(jnp.pad(images, pad, mode="edge"), shifts)
    blurred = images
    for axis in (1, 2):
        before, after = (
            jnp.take(blurred, jnp.arange(size) + step, axis=axis, mode="clip") for step in (-1, 1)
        )
        blurred = 0.5 * blurred + 0.25 * (before + after)
    images += jax.random.uniform(blur_key, per_image) * (blurred - images)
    images *= jax.random.uniform(gain_key, per_image, minval=0.9, maxval=1.1)
    images += jax.random.uniform(offset_key, (len(images), 1, 1, 3), minval=-0.1, maxval=0.1)
    level = jax.random.uniform(level_key, per_image, maxval=0.12)
    return images + level * jax.random.normal(noise_key, images.shape)


def loss(
    classifier: Classifier,
    images: Float[Array, "batch 128 128 3"],
    labels: Int[Array, "batch slots"],
) -> Float[Array, ""]:
    """Cross-entropy, summed over slots and averaged over images."""
    logits = jnp.split(classifier(images), _SPLITS, axis=-1)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(logit, labels[:, slot])
        for slot, logit in enumerate(logits)
    ]
    return jnp.stack(losses).sum(axis=0).mean()


def train(
    images: UInt8[np.ndarray, "count 128 128 3"],
    attributes: Int[np.ndarray, "count slots"],
    *,
    steps: int,
    batch_size: int = BATCH,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Classifier:
    """Trains a classifier with Adam on random batches.

    Args:
        images: Rendered avatars.
        attributes: Their attributes, as sampled by `avatars.attributes.sample`.
        steps: Number of updates.
        batch_size: Images per update.
        seed: Seed of the initial weights, the batches and the augmentation.
        report: Called with the step and its loss after every 100 steps.
    """
    labels = observe(attributes)
    classifier = Classifier(rngs=nnx.Rngs(seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps, 1e-5)
    optimizer = optax.adam(schedule)
    state = optimizer.init(cast(optax.Params, classifier))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(classifier, state, images, labels, key):
        images = augment(images.astype(jnp.float32) / 127.5 - 1, key)
        value, gradients = jax.value_and_grad(loss)(classifier, images, labels)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(classifier, updates), state, value

    order = np.random.default_rng(seed)
    key = jax.random.key(seed)
    for step in range(steps):
        batch = order.integers(len(images), size=batch_size)
        classifier, state, value = update(
            classifier, state, images[batch], labels[batch], jax.random.fold_in(key, step)
        )
        if (step + 1) % 100 == 0:
            report(step + 1, float(value))
    return classifier


@jax.jit
def _evaluate(classifier, images):
    features = classifier.features(images)
    return features, classifier.heads(features)


def _in_batches(
    classifier: Classifier, images: Float[Array | np.ndarray, "count 128 128 3"]
) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of any number of images, with few compiled shapes."""
    count = len(images)
    outputs = []
    for start in range(0, count, BATCH):
        batch = np.asarray(images[start : start + BATCH], np.float32)
        padding = ((0, -len(batch) % _MULTIPLE), (0, 0), (0, 0), (0, 0))
        outputs.append(jax.device_get(_evaluate(classifier, np.pad(batch, padding))))
    features, logits = (np.concatenate(output)[:count] for output in zip(*outputs, strict=True))
    return features, logits


def probabilities(
    classifier: Classifier, images: Float[Array | np.ndarray, "count 128 128 3"]
) -> dict[str, Float[np.ndarray, "count labels"]]:
    """Returns the probabilities of `avatars.attributes.LABELS[slot]` for every slot.

    Args:
        classifier: A trained classifier.
        images: Images in [-1, 1], at least one.
    """
    logits = np.split(_in_batches(classifier, images)[1], _SPLITS, axis=-1)
    return {slot: softmax(logit, axis=-1) for slot, logit in zip(LABELS, logits, strict=True)}


def predict(
    classifier: Classifier, images: Float[Array | np.ndarray, "count 128 128 3"]
) -> dict[str, Int[np.ndarray, " count"]]:
    """Returns the predicted index into `avatars.attributes.LABELS[slot]` for every slot and image.

    See :func:`probabilities`.
    """
    return {slot: p.argmax(axis=-1) for slot, p in probabilities(classifier, images).items()}


def features(
    classifier: Classifier, images: Float[Array | np.ndarray, "count 128 128 3"]
) -> Float[np.ndarray, "count features"]:
    """Returns the penultimate layer's activations for images in [-1, 1]."""
    return _in_batches(classifier, images)[0]


def frechet_distance(
    features_a: Float[np.ndarray, "count_a features"],
    features_b: Float[np.ndarray, "count_b features"],
) -> float:
    """Returns the Fréchet distance between Gaussians fitted to two sets of features.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Heusel et al., arXiv 1706.08500.
    """
    a, b = features_a.astype(np.float64), features_b.astype(np.float64)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # (C_a C_b)^(1/2) has the trace of (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace_root = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    difference = a.mean(axis=0) - b.mean(axis=0)
    trace = np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_root
    return float(difference @ difference + trace)


def _flat(state: Any) -> dict[str, Any]:
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def save(path: str | Path, classifier: Classifier) -> None:
    """Writes the classifier's weights to an .npz file, in float16."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: np.asarray(variable[...], np.float16)
        for name, variable in _flat(nnx.state(classifier)).items()
    }
    with Path(path).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **weights)


def load(path: str | Path = TRAINED) -> Classifier:
    """Reads a classifier written by `save`; by default, the one in this repository."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Classifier(rngs=nnx.Rngs(0))))
    with np.load(path) as weights:
        for name, variable in _flat(state).items():
            variable.set_value(jax.device_put(weights[name].astype(np.float32)))
    return nnx.merge(graph, state)


def accuracies(
    classifier: Classifier,
    images: UInt8[np.ndarray, "count 128 128 3"],
    attributes: Int[np.ndarray, "count slots"],
) -> dict[str, float]:
    """Returns the share of images with a correct label, for every slot."""
    predicted = predict(classifier, images.astype(np.float32) / 127.5 - 1)
    labels = observe(attributes).T
    return {
        slot: float(np.mean(predicted[slot] == label))
        for slot, label in zip(LABELS, labels, strict=True)
    }


def main(_: Sequence[str]) -> None:
    """Trains a classifier, evaluates it on test images, and writes it."""
    with np.load(FLAGS.train) as data:
        classifier = train(
            data["images"],
            data["attributes"],
            steps=FLAGS.steps,
            seed=FLAGS.seed,
            report=lambda step, value: print(f"step {step}: loss {value:.4f}", flush=True),
        )
    save(FLAGS.out, classifier)
    with np.load(FLAGS.test) as data:
        shares = accuracies(classifier, data["images"], data["attributes"])
    for slot, share in shares.items():
        print(f"{slot:15}{share:8.2%}")
    print(f"{'mean':15}{math.fsum(shares.values()) / len(shares):8.2%}")


if __name__ == "__main__":
    flags.DEFINE_string("train", None, "Training images, from avatars.dataset.", required=True)
    flags.DEFINE_string("test", None, "Test images with another seed.", required=True)
    flags.DEFINE_string("out", None, "The .npz file to write.", required=True)
    flags.DEFINE_integer("steps", 1500, "Number of updates.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of weights, batches and augmentation.")
    run(main)
