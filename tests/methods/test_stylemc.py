import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from styleclip_jax.errors import InputError
from styleclip_jax.latents import sample_latents
from styleclip_jax.losses import clip_pixels, similarity_loss
from styleclip_jax.methods import stylemc
from styleclip_jax.methods.stylemc import StyleMCConfig, apply_style_change, learn_style_change
from styleclip_jax.models import Generator
from styleclip_jax.sharding import replicate

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CONFIG = StyleMCConfig(steps=1, images_per_step=3, guide_resolution=16, learning_rate=0.5)
TEXT = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16)), jnp.float32)


def test_a_step_follows_the_gradients_on_whose_sign_all_images_agree(generator, clip):
    change = learn_style_change(generator, clip, TEXT, CONFIG)
    styles = jax.jit(Generator.styles)(generator, sample_latents(generator, 3, CONFIG.seed))

    @jax.jit
    @jax.grad
    def gradient(styles):
        pixels = clip_pixels(generator.synthesize(styles, 16), clip.config.image_size, "clip")
        return similarity_loss(clip.encode_image(pixels), TEXT).sum()

    expected = []
    for i, g in enumerate(np.asarray(x) for x in gradient(styles)):
        agreed = (np.sign(g) == np.sign(g[:1])).all(axis=0) & (i % 3 != 1)
        expected.append(np.where(agreed, g.mean(axis=0), 0))
    expected = -np.concatenate(expected)
    moved = np.concatenate([np.asarray(c[0]) for c in change])
    np.testing.assert_allclose(moved, 0.5 * expected / np.linalg.norm(expected), atol=1e-3)
    assert 0 < np.count_nonzero(moved) < np.count_nonzero(np.concatenate(styles, axis=1)[0])


def test_steps_lower_the_loss_and_are_compiled_once(generator, clip):
    losses = []
    config = dataclasses.replace(CONFIG, steps=8, learning_rate=0.3)
    programs: Any = stylemc._step
    programs.clear_cache()
    # As scripts place them.
    networks = replicate((generator, clip))
    learn_style_change(*networks, TEXT, config, on_step=lambda _, loss: losses.append(loss))
    assert len(losses) == 8 and np.mean(losses[4:]) < losses[0]
    assert programs._cache_size() == 1


def test_a_change_is_added_with_its_strength(generator, w_plus, styles):
    change = jax.tree.map(lambda s: s[:1], styles)
    images, edited = apply_style_change(generator, w_plus, change, -0.5)
    for ours, before, moved in zip(edited, styles, change, strict=True):
        expected = np.asarray(before) - 0.5 * np.asarray(moved)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    expected = jax.jit(Generator.synthesize)(generator, edited)
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-4)


def test_a_guide_resolution_that_the_generator_lacks_is_refused(generator, clip):
    with pytest.raises(InputError, match="guide_resolution is 256, expected one of"):
        learn_style_change(generator, clip, TEXT, StyleMCConfig())


def test_the_identity_needs_an_arcface(generator, clip):
    with pytest.raises(InputError, match=r"id_lambda is 0\.1"):
        learn_style_change(generator, clip, TEXT, dataclasses.replace(CONFIG, id_lambda=0.1))
