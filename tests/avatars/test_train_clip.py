from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatars import train_clip
from avatars.attributes import NAMES, SLOTS, index, observe, sample
from avatars.train_clip import UNKNOWN, choose_targets, describe_batch, way_loss


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_captions_fit_their_own_pictures(generator):
    texts, fits = describe_batch(observe(sample(50, seed=0)), generator)
    assert len(texts) == 50
    assert (fits.diagonal() == 1).all() and 0 < fits.mean() < 1


def test_a_caption_about_what_is_unknown_of_a_picture_may_fit_or_not(generator):
    labels = np.repeat(observe(sample(1, seed=0)), 200, axis=0)
    glasses = NAMES.index("glasses")
    labels[:100, glasses] = index("glasses", "sunglasses")
    labels[100:, glasses] = UNKNOWN
    texts, fits = describe_batch(labels, generator)
    about = ["sunglasses" in text or "shades" in text for text in texts]
    assert np.isnan(fits[:100, 100:])[about[:100]].all()
    assert not any(about[100:])
    assert (fits.diagonal() == 1).all()


def test_a_target_leaves_open_what_its_text_is_about(generator):
    attributes = sample(200, seed=1)
    texts, stays, *_ = choose_targets(attributes, generator)
    before = observe(attributes)
    changed = stays != before
    assert len(texts) == 200 and (stays[changed] == UNKNOWN).all()
    assert 0.5 < changed.any(-1).mean() < 1
    # A hat hides the hair, so that is left open too.
    for text, row, was in zip(texts, stays, before, strict=True):
        if text == "a person wearing a hat" and was[NAMES.index("headwear")] == 0:
            assert row[NAMES.index("hair")] == UNKNOWN


def test_the_way_to_a_target_changes_nothing_but_what_the_text_is_about(generator):
    attributes = sample(200, seed=2)
    _, stays, wanted, rises = choose_targets(attributes, generator)
    visible = stays < [len(values) for values in SLOTS.values()]
    stay = (stays != UNKNOWN) & visible
    assert (observe(wanted)[stay] == observe(attributes)[stay]).all()
    assert (wanted != attributes)[rises].any(-1).all()
    assert 0.5 < rises.mean() < 1


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        (lambda t: 0.3 * t, 0.0),
        (lambda t: 0.1 * t, (0.25 - 0.1) ** 2),  # too little
        (lambda t: jnp.where(t > 0.99, 0.3, 0.0), 0.3**2 * 0.3),  # nothing until the end: about
    ],
)
def test_the_way_loss_wants_an_even_rise_that_is_large_enough(similarity, expected, monkeypatch):
    attributes = jnp.asarray(sample(400, seed=3))
    clip = SimpleNamespace(encode_text=lambda tokens: jnp.zeros((len(tokens), 1)))
    # Latents that are nothing but the position on the way, and a CLIP that sees just that.
    positions = iter([jnp.zeros((400, 1, 1)), jnp.ones((400, 1, 1))])
    monkeypatch.setattr(train_clip, "disturbed_latents", lambda *_: next(positions))
    monkeypatch.setattr(train_clip, "draw", lambda generator, latents: latents[:, 0, 0])
    monkeypatch.setattr(train_clip, "clip_loss", lambda _, x, __: 1 - similarity(x))
    arguments = attributes, attributes, jnp.ones(400, bool), jnp.zeros((400, 8), jnp.int32)
    loss = way_loss(cast(Any, clip), cast(Any, None), *arguments, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, atol=3e-3)
