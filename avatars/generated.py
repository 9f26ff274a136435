"""Pictures of the generator for CLIP's training, which has seen nothing but drawings before.

    python -m avatars.generated --generator runs/generator/generator --out disturbed.npz

Random attributes, whose latents are disturbed in every layer and pulled some of the way towards
other values; 64 x 64 pixels, with `labels` as `avatars.attributes.observe` gives them for the
attributes that the latents come from.
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, Int8, Key, UInt8

from avatars.attributes import observe, sample
from avatars.train_generator import CARDINALITIES, CONFIG, indicators, latent_scale, mean_indicators
from styleclip_jax.io import checkpoints
from styleclip_jax.io.images import to_uint8
from styleclip_jax.latents import draw
from styleclip_jax.models import Generator
from styleclip_jax.runs.command_line import run

FLAGS = flags.FLAGS

BATCH = 100


def perturbed_latents(
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


def perturbed(
    generator: Generator, count: int, seed: int
) -> tuple[UInt8[np.ndarray, "count 128 128 3"], Int8[np.ndarray, "count slots"]]:
    """Pictures of perturbed latents, and their labels."""

    @jax.jit
    def pictures(generator, attributes, key):
        return draw(generator, perturbed_latents(attributes, key))

    attributes = sample(count, seed)
    made = []
    for start in range(0, count, BATCH):
        key = jax.random.fold_in(jax.random.key(seed), start)
        batch = jnp.asarray(attributes[start : start + BATCH])
        made.append(to_uint8(np.asarray(pictures(generator, batch, key))))
    return np.concatenate(made), observe(attributes)


def main(_: Sequence[str]) -> None:
    """Makes the pictures and writes them."""
    generator = checkpoints.load_generator(FLAGS.generator)
    pictures, labels = perturbed(generator, FLAGS.count, FLAGS.seed)
    out = pathlib.Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, images=pictures, labels=labels)


if __name__ == "__main__":
    flags.DEFINE_string("generator", None, "Directory of the generator.", required=True)
    flags.DEFINE_integer("count", 20_000, "How many pictures.", lower_bound=1)
    flags.DEFINE_integer("seed", 10, "Seed of everything.")
    flags.DEFINE_string("out", None, "The .npz file to write.", required=True)
    run(main)
