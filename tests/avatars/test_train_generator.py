import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from avatars import train_generator
from avatars.attributes import NAMES, SLOTS
from avatars.train_generator import (
    CARDINALITIES,
    OFFSET,
    construct_mapping,
    indicators,
    latent_scale,
    latent_scale_of,
    mean_indicators,
)
from styleclip_jax.io.checkpoints import load_generator
from styleclip_jax.models.stylegan2 import MappingNetwork


@pytest.fixture(scope="module")
def w():
    """Outputs of the mapping network for many latents, with weights in a file's precision."""
    mapping = MappingNetwork(train_generator.CONFIG, rngs=nnx.Rngs(0))
    construct_mapping(mapping)
    halved = jax.tree.map(lambda x: np.asarray(x).astype(np.float16).astype(np.float32), mapping)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, train_generator.CONFIG.z_dim)).astype(np.float32)
    return np.asarray(jax.jit(MappingNetwork.__call__)(halved, z)) / latent_scale()


def split(w):
    ends = np.cumsum(CARDINALITIES)
    return dict(zip(NAMES, np.split(w[:, : ends[-1]], ends[:-1], axis=-1), strict=True))


def test_the_mapping_chooses_one_value_of_every_attribute(w):
    chosen = np.stack([slot.argmax(-1) for slot in split(w).values()], axis=-1)
    clear = np.abs(w - np.asarray(indicators(jnp.asarray(chosen)))).max(-1) < 0.01
    assert clear.mean() > 0.9


def test_the_mapping_chooses_values_as_often_as_the_data_has_them(w):
    for slot, values in split(w).items():
        shares = np.bincount(values.argmax(-1), minlength=values.shape[1]) / len(values)
        expected = [value.weight for value in SLOTS[slot].values()]
        np.testing.assert_allclose(shares, expected, atol=0.02)


def test_the_mean_latent_is_the_mean_of_the_mapping(w):
    np.testing.assert_allclose(w.mean(0), mean_indicators(), atol=0.02)


def test_signs_distinguish_values_of_truncated_latents(w):
    truncated = np.asarray(mean_indicators()) + 0.7 * (w - np.asarray(mean_indicators()))
    clear = (np.abs(w + OFFSET) < 0.01) | (np.abs(w - 1 + OFFSET) < 0.01)
    assert (np.sign(truncated) == np.sign(w))[clear].all()


def test_the_latent_scale_is_inferred_from_a_generator():
    generator = load_generator()
    np.testing.assert_allclose(latent_scale_of(generator), latent_scale(), rtol=2e-3)
    generator.mean_w[...] = 0.3 * generator.mean_w[...]
    used = sum(CARDINALITIES)
    expected = np.where(np.arange(len(latent_scale())) < used, 0.3, 1.0) * latent_scale()
    np.testing.assert_allclose(latent_scale_of(generator), expected, rtol=2e-3)
