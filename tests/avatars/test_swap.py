import jax
import numpy as np
import pytest
from flax import nnx

from avatars.attributes import NAMES, SLOTS, index, observe, sample
from avatars.scores import edit_score
from avatars.swap import attributes_of, latents_of, swap
from avatars.texts import EDITS
from avatars.train_generator import CONFIG, construct_mapping, latent_scale, mean_indicators
from styleclip_jax.models.stylegan2 import MappingNetwork

TRUNCATION = 0.7


@pytest.fixture(scope="module")
def latents():
    """Latents of 300 random avatars."""
    return latents_of(sample(300, seed=3), TRUNCATION, 4)


def test_attributes_are_recovered_from_their_latents():
    attributes = sample(300, seed=3)
    for truncation in (0.5, 1.0):
        latents = latents_of(attributes, truncation, 4)
        np.testing.assert_array_equal(attributes_of(latents), attributes)


def test_latents_of_attributes_are_those_of_the_mapping_network():
    mapping = MappingNetwork(CONFIG, rngs=nnx.Rngs(0))
    construct_mapping(mapping)
    z = np.random.default_rng(0).normal(size=(200, CONFIG.z_dim)).astype(np.float32)
    mean = latent_scale() * np.asarray(mean_indicators())
    mapped = mean + TRUNCATION * (np.asarray(jax.jit(MappingNetwork.__call__)(mapping, z)) - mean)
    made = np.asarray(latents_of(attributes_of(mapped[:, None]), TRUNCATION, 1))[:, 0]
    # They differ between two values, where latents rarely are.
    assert (np.abs(made - mapped).max(-1) < 0.02).mean() > 0.9


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_a_rendered_swap_is_right_in_every_image(latents, edit):
    before = observe(attributes_of(latents))
    after = observe(attributes_of(swap(latents, edit.slot, edit.value, TRUNCATION)))
    score = edit_score(before, after, edit.slot, edit.value)
    assert (score["target"], score["others"], score["whole"]) == (1, 1, 1)


def test_a_swap_removes_the_hat_over_the_hair_and_changes_no_other_entry(latents):
    before = attributes_of(latents)
    after = attributes_of(swap(latents, "hair", "bun", TRUNCATION))
    assert (after[:, NAMES.index("headwear")] == index("headwear", "none")).all()
    others = [i for i, name in enumerate(NAMES) if name not in ("hair", "headwear")]
    np.testing.assert_array_equal(after[:, others], before[:, others])


def test_a_swap_to_the_current_value_changes_nothing(latents):
    smiling = attributes_of(latents)[:, NAMES.index("mouth")] == [*SLOTS["mouth"]].index("smiling")
    swapped = swap(latents, "mouth", "smiling", TRUNCATION)
    ours, before = (np.asarray(x)[smiling] for x in (swapped, latents))
    np.testing.assert_allclose(ours, before, atol=1e-6)
