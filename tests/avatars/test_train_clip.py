import re
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatars import train_clip
from avatars.attributes import NAMES, index, observe, sample
from avatars.running_edits import UNKNOWN, choose_targets
from avatars.train_clip import (
    RISE,
    RISE_WEIGHT,
    STILL_WEIGHT,
    Triples,
    change_elsewhere,
    contrastive_loss,
    describe_batch,
    target_fits,
    triple_loss,
)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_captions_fit_their_own_pictures(generator):
    texts, fits, _ = describe_batch(observe(sample(50, seed=0)), generator)
    assert len(texts) == 50
    assert (fits.diagonal() == 1).all() and 0 < fits.mean() < 1


def test_a_caption_about_what_is_unknown_of_a_picture_may_fit_or_not(generator):
    labels = np.repeat(observe(sample(1, seed=0)), 200, axis=0)
    glasses = NAMES.index("glasses")
    labels[:100, glasses] = index("glasses", "sunglasses")
    labels[100:, glasses] = UNKNOWN
    texts, fits, _ = describe_batch(labels, generator)
    about = [
        re.search("(no|without|no [a-z]+) (glasses|eyewear)", text) is None
        and re.search("sunglasses|shades|sunnies|aviators|(dark|tinted) glasses", text) is not None
        for text in texts
    ]
    assert np.isnan(fits[:100, 100:])[about[:100]].all()
    assert not any(about[100:])
    assert (fits.diagonal() == 1).all()


def test_a_text_about_one_attribute_fits_what_shows_it(generator):
    labels = observe(sample(50, seed=2))
    glasses = NAMES.index("glasses")
    labels[0, glasses] = UNKNOWN
    targets = choose_targets(labels[:1], generator)
    sunglasses = index("glasses", "sunglasses")
    targets = targets._replace(slots=np.array([glasses]), values=np.array([sunglasses]))
    (fits,) = target_fits(targets, labels)
    assert np.isnan(fits[0])
    np.testing.assert_array_equal(fits[1:], labels[1:, glasses] == sunglasses)


def test_a_caption_that_fits_no_picture_is_only_a_wrong_answer():
    features = jnp.eye(3)
    clip: Any = SimpleNamespace(
        encode_image=lambda x: x, encode_text=lambda x: x, logit_scale=jnp.zeros(())
    )
    two, *_ = contrastive_loss(clip, features[:2], features[:2], jnp.eye(2))
    three, *_ = contrastive_loss(clip, features[:2], features, jnp.eye(3)[:, :2])
    assert jnp.isfinite(three) and three != two


def test_the_third_image_of_a_triple_differs_in_one_slot_and_shows_the_same_in_that_of_the_text():
    attributes = sample(400, seed=4)
    slots = np.random.default_rng(1).integers(len(NAMES), size=400)
    changed = change_elsewhere(attributes, slots, np.random.default_rng(2))
    rows = np.arange(400)
    assert ((changed != attributes).sum(-1) <= 1).all()
    assert (changed != attributes).any(-1).mean() > 0.8
    np.testing.assert_array_equal(observe(changed)[rows, slots], observe(attributes)[rows, slots])


@pytest.mark.parametrize(
    ("rise", "moved", "rises", "expected"),
    [
        (0.9, 0.0, True, 0.0),
        (0.05, 0.0, True, RISE_WEIGHT * (RISE - 0.05) ** 2),
        (-0.1, 0.0, True, RISE_WEIGHT * (RISE + 0.1) ** 2),
        (0.05, 0.0, False, 0.0),
        (0.9, 0.2, True, STILL_WEIGHT * 0.2**2),
        (0.9, -0.2, True, STILL_WEIGHT * 0.2**2),
    ],
)
def test_features_have_to_move_along_the_text_that_names_the_change_and_along_no_other(
    rise, moved, rises, expected, monkeypatch
):
    """Features have two entries; the direction of every text is the first one."""
    positions = iter((0.0, rise, moved))

    def unit_features(_, key):
        along = next(positions)
        return jnp.tile(jnp.array([along, np.sqrt(1 - along**2)]), (4, 1))

    clip: Any = SimpleNamespace(
        config=SimpleNamespace(image_size=8),
        encode_image=lambda x: x,
        encode_text=lambda tokens: jnp.array([[1.0, 0.0]] * 4 + [[-1.0, 0.0]]),
    )
    monkeypatch.setattr(train_clip, "perturbed_latents", unit_features)
    monkeypatch.setattr(train_clip, "synthesize", lambda generator, latents, size: latents)
    monkeypatch.setattr(train_clip, "clip_pixels", lambda images, size: images)
    attributes = jnp.asarray(sample(4, seed=3))
    tokens = jnp.zeros((4, 8), jnp.int32)
    triples = Triples(attributes, attributes, attributes, jnp.full(4, rises), tokens, tokens[:1])
    loss = triple_loss(clip, cast(Any, None), triples, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, atol=1e-5)
