"""Trains the avatars generator: `python -m avatars.train_generator --data pairs.npz --out DIR`.

The space W of this generator is constructed: every value of every attribute has its own entry of
`w`, which is positive for images with the value and negative for others. Only the synthesis network
is trained, by regression, because in a few CPU hours a reconstruction loss achieves far more than
an adversary. It learns to synthesize the image from `w`, which is randomly truncated towards the
mean latent and perturbed by noise, partly different in every layer. Therefore a whole neighborhood
of every latent in W+ gives the same face.

The mapping network is constructed too (:func:`construct_mapping`). Each attribute has an entry of
`z`, which quantiles of the normal distribution divide into one interval per value, with the
probability of the value. Two layers of leaky ReLUs represent such a step function exactly.

Half of the latents lie between two avatars that differ in one attribute. Their target images are
blended, so that the image changes evenly during an edit. With `--annotator`, the loss also compares
features of a classifier, which distinguish a moustache from a shadow.

The training is checkpointed every few minutes and resumes from the last checkpoint.
"""

import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import scipy.special
from absl import flags
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from avatars.attributes import SLOTS, observe
from avatars.classifier import load as load_classifier
from avatars.training import learning_rate_schedule, train
from styleclip_jax.io import checkpoints
from styleclip_jax.models import stylegan2
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS

CONFIG = stylegan2.GeneratorConfig(
    resolution=128,
    z_dim=64,
    w_dim=96,
    mapping_layers=2,
    channel_base=2048,
    channel_max=128,
    mapping_lr_multiplier=1.0,
)
CARDINALITIES = tuple(len(values) for values in SLOTS.values())
PROBABILITIES = tuple(np.array([v.weight for v in values.values()]) for values in SLOTS.values())
# Subtracted from the indicators, so that signs distinguish values of truncated `w` too: mappers see
# little more than signs, because their pixel norm is over the layers of W+.
OFFSET = 0.35
# Indicators have a standard deviation of about 0.4, but equalized layers expect inputs of unit
# variance. During training the synthesis network sees w times this gain.
LATENT_GAIN = 2.4
# The height of the indicators of the final generator, to which the affine layers are rescaled. It
# sets the scale of learning rates and L2 weights in an optimization.
LATENT_SCALE = 2.0
# Steepness of the mapping network's steps: they cover one thousandth of the thresholds' range.
STEEPNESS = 256.0
# Weights of the attributes' areas; eyes and mouth, only a few pixels, are learned last.
AREA_WEIGHTS = {"eyes": 4.0, "mouth": 4.0, "facial_hair": 4.0}
# Weight of the mean absolute difference of an annotator's features.
FEATURE_WEIGHT = 0.05
# A truncation down to this value does not change the image; below it, the image changes evenly.
PLATEAU = 0.6
# Noise of the position between two avatars, different in every layer.
POSITION_NOISE = 0.15


@jax.jit
def indicators(attributes: Int[Array, "batch slots"]) -> Float[Array, "batch w_dim"]:
    """The `w` of images: 1 - OFFSET at their values, -OFFSET at other values, 0 where unused."""
    columns = [jax.nn.one_hot(attributes[:, i], n) for i, n in enumerate(CARDINALITIES)]
    return _padded(jnp.concatenate(columns, axis=-1) - OFFSET)


def mean_indicators() -> Float[Array, " w_dim"]:
    """The mean of `indicators` over the data."""
    probabilities = np.concatenate([p / p.sum() for p in PROBABILITIES])
    return _padded(jnp.asarray(probabilities) - OFFSET)


def latent_scale() -> Float[np.ndarray, " w_dim"]:
    """The height of every entry of `w`; 1 where it is unused."""
    return np.where(np.arange(CONFIG.w_dim) < sum(CARDINALITIES), LATENT_SCALE, 1.0)


def latent_scale_of(network: stylegan2.Generator) -> Float[np.ndarray, " w_dim"]:
    """Infers the `latent_scale` of a generator, which may differ from the current one."""
    mean = np.asarray(mean_indicators())
    used = mean != 0
    return np.where(used, network.mean_w[...] / np.where(used, mean, 1.0), 1.0)


def _padded(w: Array) -> Array:
    return jnp.concatenate([w, jnp.zeros((*w.shape[:-1], CONFIG.w_dim - w.shape[-1]))], axis=-1)


def pixel_weights(images: np.ndarray, attributes: np.ndarray) -> Float[Array, "size size 1"]:
    """Weights of the pixels, 1 on average, that balance small and large attributes.

    The area of an attribute is where the mean images of its values differ.
    """
    images, labels = images[:5000].astype(np.float32), observe(attributes[:5000])
    weights = np.zeros(images.shape[1:3])
    for i, (slot, values) in enumerate(SLOTS.items()):
        means = np.stack([images[labels[:, i] == j].mean(0) for j in range(len(values))])
        area = means.var(0).sum(-1)
        area[area < 0.1 * area.max()] = 0
        weights += AREA_WEIGHTS.get(slot, 1.0) * area / area.sum()
    return jnp.asarray(weights / weights.mean())[..., None]


def halved(images: Float[Array, "batch size size channels"]) -> Array:
    """Averages blocks of 2 x 2 pixels."""
    batch, size, _, channels = images.shape
    return images.reshape(batch, size // 2, 2, size // 2, 2, channels).mean((2, 4))


def reconstruction_loss(images: Array, targets: Array, weight: Array) -> Array:
    """L1 and squared error of pixels, L1 of smaller images and of differences of neighbors."""
    difference = images - targets
    coarse = halved(halved(difference))
    return (
        (weight * jnp.abs(difference)).mean()
        + (weight * jnp.square(difference)).mean()
        + jnp.abs(coarse).mean()
        + (weight[1:] * jnp.abs(jnp.diff(difference, axis=1))).mean()
        + (weight[:, 1:] * jnp.abs(jnp.diff(difference, axis=2))).mean()
    )


def training_latents(
    attributes: Int[Array, "batch slots"],
    others: Int[Array, "batch slots"],
    mean_w: Float[Array, " w_dim"],
    key: Key[Array, ""],
) -> tuple[Float[Array, "batch layers w_dim"], Float[Array, " batch"]]:
    """Samples W+ latents between two avatars, and the share of the second avatar in their images.

    Half of them are latents of the first avatar. The others lie at random positions between the two
    avatars. Their target images are blended linearly between the positions of either avatar
    truncated to PLATEAU, so the image changes evenly in between and an edit finds a gradient.
    """
    batch, layers = len(attributes), CONFIG.num_layers
    keys = jax.random.split(key, 7)
    truncation = jax.random.uniform(keys[0], (batch, 1), minval=PLATEAU, maxval=1.1)
    between = jax.random.bernoulli(keys[1], 0.5, (batch, 1))
    position = jnp.where(between, jax.random.uniform(keys[2], (batch, 1)), 0)
    positions = position + between * POSITION_NOISE * jax.random.normal(keys[3], (batch, layers))
    # The layers of the last block only sharpen, so they get latents of other images.
    content = layers - 2
    position = positions[:, :content].mean(1)
    shown = jnp.clip(0.5 - truncation[:, 0] * (1 - 2 * position) / (2 * PLATEAU), 0, 1)

    w, other = indicators(attributes)[:, None], indicators(others)[:, None]
    w_plus = w + positions[..., None] * (other - w)
    w_plus = mean_w + truncation[..., None] * (w_plus - mean_w)
    shared = jax.random.normal(keys[4], (batch, 1, CONFIG.w_dim))
    of_layers = jax.random.normal(keys[5], (batch, layers, CONFIG.w_dim))
    w_plus += FLAGS.latent_noise * (shared + of_layers)
    shuffled = jax.random.permutation(keys[6], w_plus[:, content:])
    return jnp.concatenate([w_plus[:, :content], shuffled], axis=1), shown


def synthesis_step(network, ema, opt_state, mean_w, weight, annotator, batch, key, *, optimizer):
    """One update of the synthesis network and of the moving average of its weights."""
    images, attributes, other_images, other_attributes = batch
    w_plus, shown = training_latents(attributes, other_attributes, mean_w, key)
    shown = shown[:, None, None, None]
    targets = (images + shown * (other_images.astype(jnp.float32) - images)) / 127.5 - 1
    graph, trainable, rest = nnx.split(network, nnx.Param, ...)

    def loss_fn(trainable):
        network = nnx.merge(graph, trainable, rest)
        styles = network.styles(LATENT_GAIN * w_plus)
        *_, small, images = network.synthesis.skip_images(styles, CONFIG.resolution)
        # CLIP sees the smaller image (`guide_resolution`), so it has to be right too.
        loss = reconstruction_loss(images, targets, weight)
        loss += reconstruction_loss(small, halved(targets), halved(weight[None])[0])
        if annotator is not None:
            seen, wanted = annotator.features(images), annotator.features(targets)
            loss += FEATURE_WEIGHT * jnp.abs(seen - wanted).mean()
        return loss, jnp.abs(images - targets).mean()

    gradients, error = jax.grad(loss_fn, has_aux=True)(trainable)
    updates, opt_state = optimizer.update(gradients, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    ema = optax.incremental_update(trainable, ema, 0.002)
    return nnx.merge(graph, trainable, rest), ema, opt_state, error


def grow(small: stylegan2.Generator, network: stylegan2.Generator) -> None:
    """Initializes `network`, with more channels and one more resolution, to the images of `small`.

    New channels start with random input weights and zero output weights, and the new block adds
    nothing to the upsampled image (progressive growing, Karras et al. 2018, without the fade).
    """

    def copy(target: nnx.Variable, source: nnx.Variable, gain: float = 1.0) -> None:
        corner = tuple(slice(n) for n in source.shape)
        target[...] = target[...].at[corner].set(gain * source[...])

    def copy_affine(target: Any, source: Any) -> None:
        copy(target.affine.kernel, source.affine.kernel)
        copy(target.affine.bias, source.affine.bias)

    network.synthesis.constant[...] = small.synthesis.constant[...]
    for new, old in zip(network.synthesis.convs, small.synthesis.convs, strict=False):
        inputs, outputs = old.kernel.shape[2:]
        new.kernel[...] = new.kernel[...].at[:, :, inputs:, :outputs].set(0)
        copy(new.kernel, old.kernel, (new.kernel.shape[2] / inputs) ** 0.5)
        for name in ("bias", "noise", "noise_strength"):
            copy(getattr(new, name), getattr(old, name))
        copy_affine(new, old)
    for new, old in zip(network.synthesis.rgbs, small.synthesis.rgbs, strict=False):
        new.kernel[...] = jnp.zeros_like(new.kernel[...])
        copy(new.kernel, old.kernel, (new.kernel.shape[0] / old.kernel.shape[0]) ** 0.5)
        new.bias[...] = old.bias[...]
        copy_affine(new, old)
    for new in list(network.synthesis.rgbs)[len(small.synthesis.rgbs) :]:
        new.kernel[...] = jnp.zeros_like(new.kernel[...])


def quantile_cuts() -> list[tuple[int, float, int]]:
    """The steps of the mapping: position in `z`, threshold, and the entry of `w` above it."""
    cuts, first = [], 0
    for slot, p in enumerate(PROBABILITIES):
        edges = scipy.special.ndtri(np.cumsum(p / p.sum())[:-1])
        cuts += [(slot, edge, first + 1 + i) for i, edge in enumerate(edges)]
        first += len(p)
    return cuts


def construct_mapping(mapping: stylegan2.MappingNetwork) -> None:
    """Constructs the mapping network, which maps intervals of `z` to the `w` of their values.

    With ``a = STEEPNESS (z - threshold)``, ``lrelu(a + 1/2) - lrelu(a - 1/2)`` is 0.2 below the
    threshold and 1 above it, up to the gain. Two units of the first layer make one such step, and
    the second layer makes indicators of steps, so that its activation gives the values of `w`.
    """
    first, second = mapping.layers
    used = sum(CARDINALITIES)
    kernels = np.zeros(first.kernel.shape), np.zeros(second.kernel.shape)
    biases = np.zeros(CONFIG.w_dim), np.zeros(CONFIG.w_dim)
    biases[1][np.cumsum((0, *CARDINALITIES[:-1]))] = 1  # below all thresholds: the first value
    for i, (entry, threshold, begins) in enumerate(quantile_cuts()):
        pair = [2 * i, 2 * i + 1]
        kernels[0][entry, pair] = STEEPNESS
        # Integers and halves are exact in the file's float16.
        biases[0][pair] = np.array([0.5, -0.5]) - np.round(STEEPNESS * threshold)
        for column, sign in ((begins, 1), (begins - 1, -1)):
            kernels[1][pair, column] = np.array([1, -1]) * sign / (0.8 * np.sqrt(2))
            biases[1][column] -= sign * 0.25
    # Maps 0 and 1 to values that the last leaky ReLU maps to -OFFSET and 1 - OFFSET.
    low, high = -OFFSET / 0.2, 1 - OFFSET
    kernels[1][:] *= high - low
    biases[1][:used] = low + (high - low) * biases[1][:used]
    for layer, kernel, bias, scale in (
        (first, kernels[0], biases[0], 1),
        (second, kernels[1], biases[1], latent_scale() / np.sqrt(2)),
    ):
        layer.kernel[...] = jnp.asarray(scale * np.sqrt(len(kernel)) * kernel, jnp.float32)
        layer.bias[...] = jnp.asarray(scale * bias, jnp.float32)


def train_synthesis(
    network: stylegan2.Generator,
    data: tuple[np.ndarray, ...],
    manager: ocp.CheckpointManager,
) -> stylegan2.Generator:
    """Trains the synthesis network; returns the generator with averaged weights."""
    annotator = load_classifier(FLAGS.annotator) if FLAGS.annotator else None
    constants = mean_indicators(), pixel_weights(*data[:2]), annotator
    key = jax.random.key(FLAGS.seed)
    optimizer = optax.adam(learning_rate_schedule(FLAGS.learning_rate, FLAGS.steps), 0.9, 0.99)
    step_fn = jax.jit(partial(synthesis_step, optimizer=optimizer), donate_argnums=(0, 1, 2))

    def one_step(state, step):
        rng = np.random.default_rng([FLAGS.seed, step])
        picked = rng.integers(len(data[0]), size=FLAGS.batch_size)
        batch = tuple(array[picked] for array in data)
        *state, error = step_fn(*state, *constants, batch, jax.random.fold_in(key, step))
        return tuple(state), error

    params = nnx.state(network, nnx.Param)
    state = (network, jax.tree.map(jnp.copy, params), optimizer.init(params))
    network, ema, _ = train(state, FLAGS.steps, one_step, manager, "synthesis")
    nnx.update(network, ema)
    return network


def scale_affines(network: stylegan2.Generator, factors: Float[np.ndarray, " w_dim"]) -> None:
    """Rescales the affine layers for latents whose entries are divided by `factors`."""
    for layer in (*network.synthesis.convs, *network.synthesis.rgbs):
        layer.affine.kernel[...] *= jnp.asarray(factors, jnp.float32)[:, None]


def main(_: Sequence[str]) -> None:
    """Trains the generator and writes it."""
    out = pathlib.Path(FLAGS.out).absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with np.load(FLAGS.data) as data:
        names = ("images", "attributes", "other_images", "other_attributes")
        arrays = tuple(data[name] for name in names)
    fast = cast(stylegan2.Convolve, stylegan2.trainable_convolve)
    network = stylegan2.Generator(CONFIG, rngs=nnx.Rngs(FLAGS.seed), convolve=fast)
    if FLAGS.init:
        first = checkpoints.load_generator(FLAGS.init)
        scale_affines(first, latent_scale_of(first) / LATENT_GAIN)
        grow(first, network)
    with ocp.CheckpointManager(out / "synthesis", options=options) as manager:
        generator = train_synthesis(network, arrays, manager)
    scale_affines(generator, LATENT_GAIN / latent_scale())
    construct_mapping(generator.mapping)
    generator.mean_w[...] = latent_scale() * mean_indicators()
    checkpoints.save_model(out / "generator", generator, dtype=jnp.float16)


if __name__ == "__main__":
    flags.DEFINE_string(
        "data", None, "Images and attributes, written by avatars.dataset with --pairs."
    )
    flags.DEFINE_string("out", None, "Directory for checkpoints and the final generator.")
    flags.DEFINE_string("init", None, "Start from a generator of an earlier training.")
    flags.DEFINE_string(
        "annotator", None, "Weights of a classifier whose features are also compared."
    )
    flags.DEFINE_integer("steps", 9000, "Training steps.")
    flags.DEFINE_integer("batch_size", 16, "Images per step.")
    flags.DEFINE_float("learning_rate", 4e-3, "Peak learning rate of Adam.")
    flags.DEFINE_float(
        "latent_noise", 0.12, "Standard deviation of the noise on w, shared and per layer."
    )
    flags.DEFINE_integer("seed", 0, "Seed of initial weights, batches and noise.")
    flags.mark_flags_as_required(["data", "out"])
    run(main)
