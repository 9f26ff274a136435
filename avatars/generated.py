"""Pictures of the generator for CLIP's training: what it will have to judge in an optimization.

    python -m avatars.generated --generator runs/generator/generator --out disturbed.npz
    python -m avatars.generated --generator runs/generator/generator --clip runs/clip/clip \
        --classifier labeller.npz --out edited.npz

A CLIP that has seen nothing but drawings rewards what no drawing shows: half of an attribute, a
colour that spreads. There are two kinds of pictures against it, both 64 x 64 pixels, with `labels`
as `avatars.attributes.observe` gives them.

* Disturbed: random attributes whose latents are disturbed in every layer and pulled some of the
  way towards other values. They are labelled as the attributes that they come from.
* Edited, where a CLIP is given: what `edit_latents` makes of random faces with that CLIP, early and
  late, whether it succeeded or failed. A classifier says what they show, which must not be the
  one that judges the models afterwards; pictures of which it is not sure are left out.
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, Int8, Key, UInt8

from avatars.attributes import NAMES, SLOTS, observe, sample
from avatars.captions import prompts
from avatars.classifier import Classifier, load, probabilities
from avatars.train_generator import CARDINALITIES, CONFIG, indicators, latent_scale, mean_indicators
from styleclip_jax import checkpoints
from styleclip_jax.command_line import run
from styleclip_jax.images import from_uint8, to_uint8
from styleclip_jax.latents import draw, sample_latents
from styleclip_jax.models import CLIP, Generator
from styleclip_jax.optimization import OptimizeConfig, edit_latents
from styleclip_jax.text import Tokenizer, encode_texts, load_tokenizer

FLAGS = flags.FLAGS

BATCH = 100
# Of the classifier, for the least certain of a picture's attributes.
LEAST_PROBABILITY = 0.6


def disturbed_latents(
    attributes: Int[Array, "batch slots"], key: Key[Array, ""]
) -> Float[Array, "batch layers w_dim"]:
    """W+ latents in the neighbourhood of the attributes'."""
    keys = iter(jax.random.split(key, 8))
    batch, slots = attributes.shape

    def uniform(low: float, high: float, *shape: int) -> Array:
        return jax.random.uniform(next(keys), (batch, *shape), minval=low, maxval=high)

    # Up to a third of the way towards another value, in every third slot.
    others = (uniform(0, 1, slots) * jnp.asarray(CARDINALITIES)).astype(int)
    way = jnp.where(uniform(0, 1, slots) < 0.33, uniform(0, 0.33, slots), 0)
    way = jnp.repeat(way, np.array(CARDINALITIES), axis=1)
    way = jnp.pad(way, ((0, 0), (0, CONFIG.w_dim - way.shape[1])))
    w = indicators(attributes)
    w += way * (indicators(others) - w)
    w = mean_indicators() + uniform(0.6, 1.1, 1) * (w - mean_indicators())
    shared = uniform(0, 0.15, 1) * jax.random.normal(next(keys), w.shape)
    of_layers = jax.random.normal(next(keys), (batch, CONFIG.num_layers, CONFIG.w_dim))
    return jnp.asarray(latent_scale(), jnp.float32) * (
        (w + shared)[:, None] + uniform(0, 0.15, 1, 1) * of_layers
    )


def disturbed(
    generator: Generator, count: int, seed: int
) -> tuple[UInt8[np.ndarray, "count 64 64 3"], Int8[np.ndarray, "count slots"]]:
    """Pictures of disturbed latents, and their labels."""

    @jax.jit
    def pictures(generator, attributes, key):
        return draw(generator, disturbed_latents(attributes, key))

    attributes = sample(count, seed)
    made = []
    for start in range(0, count, BATCH):
        key = jax.random.fold_in(jax.random.key(seed), start)
        batch = jnp.asarray(attributes[start : start + BATCH])
        made.append(to_uint8(np.asarray(pictures(generator, batch, key))))
    return np.concatenate(made), observe(attributes)


def edited(
    generator: Generator, clip: CLIP, tokenizer: Tokenizer, classifier: Classifier, seed: int
) -> tuple[UInt8[np.ndarray, "count 64 64 3"], Int8[np.ndarray, "count slots"]]:
    """Pictures of `BATCH` random edits at four moments, and what the classifier sees in them."""
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(BATCH):
        slot = random.choice(NAMES)
        texts.append(random.choice(prompts(slot, random.choice(list(SLOTS[slot])))))
    moments = []
    edit_latents(
        generator,
        clip,
        sample_latents(generator, BATCH, seed, truncation=random.uniform(0.7, 1)),
        encode_texts(clip, tokenizer, texts),
        OptimizeConfig(steps=100),
        on_progress=lambda *state: moments.append(jax.jit(draw)(generator, state[-1])),
        progress_every=25,
    )
    pictures = to_uint8(np.concatenate(moments))
    seen = probabilities(classifier, from_uint8(pictures))
    labels = np.stack([seen[slot].argmax(-1) for slot in NAMES], axis=-1).astype(np.int8)
    certain = np.min([seen[slot].max(-1) for slot in NAMES], axis=0) > LEAST_PROBABILITY
    return pictures[certain], labels[certain]


def main(_: Sequence[str]) -> None:
    """Makes the pictures and writes them."""
    generator = checkpoints.load_generator(FLAGS.generator)
    if FLAGS.clip:
        clip, tokenizer = checkpoints.load_clip(FLAGS.clip), load_tokenizer(FLAGS.clip)
        classifier = load(FLAGS.classifier)
        batches = [
            edited(generator, clip, tokenizer, classifier, seed)
            for seed in range(FLAGS.seed, FLAGS.seed + -(-FLAGS.count // BATCH))
        ]
        pictures, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    else:
        pictures, labels = disturbed(generator, FLAGS.count, FLAGS.seed)
    out = pathlib.Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, images=pictures, labels=labels)


if __name__ == "__main__":
    flags.DEFINE_string("generator", None, "Directory of the generator.", required=True)
    flags.DEFINE_string("clip", None, "Directory of the CLIP to edit with. None: no edits.")
    flags.DEFINE_string("classifier", None, "Weights of the classifier that labels edits.")
    flags.DEFINE_integer("count", 20_000, "Disturbed pictures, or edits; four pictures of each.")
    flags.DEFINE_integer("seed", 10, "Seed of everything.")
    flags.DEFINE_string("out", None, "The .npz file to write.", required=True)
    run(main)
