"""Trains the avatars encoder: `python -m avatars.train_encoder --data train.npz --out DIR`.

An e4e encoder in a small configuration learns from two kinds of images:

* Rendered avatars. Their attributes determine the latents that the generator synthesizes them from.
  Covered attributes have their first value, so that the target is unique.
* Images that the generator synthesizes from perturbed latents of avatars, including images of
  unfinished edits, with these latents.

The loss compares the latents and, because a close latent can still give a wrong image, the
generator's reconstruction with the input: pixels and features of the annotator.

The training is checkpointed every few minutes and resumes from the last checkpoint.
"""

import pathlib
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import flags
from flax import nnx
from jax import lax
from jaxtyping import Array, Int8, Key

from avatars.attributes import COVERED_BY, HIDDEN, NAMES, index, observe
from avatars.classifier import load as load_classifier
from avatars.perturbation import perturbed_latents
from avatars.swap import latents_of
from avatars.train_generator import (
    CONFIG,
    halved,
    pixel_weights,
    reconstruction_loss,
)
from avatars.training import learning_rate_schedule, train
from styleclip_jax.io import checkpoints
from styleclip_jax.models import E4E, E4EConfig
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS

ENCODER_CONFIG = E4EConfig(
    image_height=64,
    image_width=64,
    num_layers=CONFIG.num_layers,
    w_dim=CONFIG.w_dim,
    stem_width=16,
    stages=((24, 1), (48, 2), (80, 2), (80, 2)),
    reduction=8,
)
# Weights of the latents' squared error, of pixels and of the annotator's features.
LATENT_WEIGHT, PIXEL_WEIGHT, FEATURE_WEIGHT = 1.0, 0.5, 0.05
# Number of predictions of either kind that are synthesized and compared with the input per step.
SYNTHESIZED = 4


def visible(attributes: Int8[np.ndarray, "count slots"]) -> Int8[np.ndarray, "count slots"]:
    """Attributes of the same images, with the first value in place of covered ones."""
    labels = observe(attributes)
    for slot in COVERED_BY:
        column = NAMES.index(slot)
        labels[labels[:, column] == index(slot, HIDDEN), column] = 0
    return labels


def encoder_step(encoder, opt_state, generator, annotator, weight, batch, key, *, optimizer):
    """One update; half of the batch are rendered images, the other half synthesized ones."""
    rendered, attributes, others = batch
    rendered = rendered.astype(jnp.float32) / 127.5 - 1
    perturbed = perturbed_latents(others, key)
    images = jnp.concatenate([rendered, lax.stop_gradient(generator(perturbed))])
    wanted = jnp.concatenate([latents_of(attributes, 1.0, CONFIG.num_layers), perturbed])
    # A few of either kind.
    some = np.r_[:SYNTHESIZED, len(rendered) : len(rendered) + SYNTHESIZED]
    graph, trainable, rest = nnx.split(encoder, nnx.Param, ...)

    def loss_fn(trainable):
        latents = nnx.merge(graph, trainable, rest)(halved(images))
        synthesized = generator(latents[some])
        seen, original = annotator.features(synthesized), annotator.features(images[some])
        latent_loss = jnp.square(latents - wanted).mean()
        loss = (
            LATENT_WEIGHT * latent_loss
            + PIXEL_WEIGHT * reconstruction_loss(synthesized, images[some], weight)
            + FEATURE_WEIGHT * jnp.abs(seen - original).mean()
        )
        return loss, latent_loss

    gradients, latent_loss = jax.grad(loss_fn, has_aux=True)(trainable)
    updates, opt_state = optimizer.update(gradients, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    return nnx.merge(graph, trainable, rest), opt_state, latent_loss


def train_encoder(
    encoder: E4E, data: tuple[np.ndarray, np.ndarray], manager: ocp.CheckpointManager
) -> E4E:
    """Trains on images and attributes."""
    images, attributes = data[0], visible(data[1])
    generator = checkpoints.load_generator(FLAGS.generator)
    constants = generator, load_classifier(FLAGS.annotator), pixel_weights(*data)
    schedule = learning_rate_schedule(FLAGS.learning_rate, FLAGS.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    step_fn = jax.jit(partial(encoder_step, optimizer=optimizer), donate_argnums=(0, 1))
    key: Key[Array, ""] = jax.random.key(FLAGS.seed)

    def one_step(state, step):
        rng = np.random.default_rng([FLAGS.seed, step])
        drawn, others = rng.integers(len(images), size=(2, FLAGS.batch_size // 2))
        batch = images[drawn], attributes[drawn], attributes[others]
        *state, loss = step_fn(*state, *constants, batch, jax.random.fold_in(key, step))
        return tuple(state), loss

    state = (encoder, optimizer.init(nnx.state(encoder, nnx.Param)))
    return train(state, FLAGS.steps, one_step, manager, "encoder")[0]


def main(_: Sequence[str]) -> None:
    """Trains and writes the encoder."""
    out = pathlib.Path(FLAGS.out).absolute()
    encoder = E4E(ENCODER_CONFIG, rngs=nnx.Rngs(FLAGS.seed))
    mean_w = checkpoints.load_generator(FLAGS.generator).mean_w[...]
    encoder.mean_latent[...] = jnp.broadcast_to(mean_w, encoder.mean_latent.shape)
    with np.load(FLAGS.data) as data:
        arrays = data["images"], data["attributes"]
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(out / "training", options=options) as manager:
        encoder = train_encoder(encoder, arrays, manager)
    checkpoints.save_model(out / "encoder", encoder, dtype=jnp.float16)


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "Images and attributes, written by avatars.dataset.")
    flags.DEFINE_string("out", None, "Directory for checkpoints and the final encoder.")
    flags.DEFINE_string("generator", None, "Generator to invert; default: the package's.")
    flags.DEFINE_string("annotator", None, "Weights of a classifier whose features are compared.")
    flags.DEFINE_integer("steps", 5000, "Training steps.")
    flags.DEFINE_integer("batch_size", 32, "Images per step, half of them rendered.")
    flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate of Adam.")
    flags.DEFINE_integer("seed", 0, "Seed of initial weights, batches and noise.")
    flags.mark_flags_as_required(["data", "out", "annotator"])
    run(main)
