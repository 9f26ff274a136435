from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatars import train_clip
from avatars.attributes import NAMES, index, observe, sample
from avatars.running_edits import UNKNOWN, choose_targets
from avatars.train_clip import RISE, Pairs, contrastive_loss, describe_batch, rise_loss, target_fits


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
    two, _ = contrastive_loss(clip, features[:2], features[:2], jnp.eye(2))
    three, _ = contrastive_loss(clip, features[:2], features, jnp.eye(3)[:, :2])
    assert jnp.isfinite(three) and three != two


@pytest.mark.parametrize(
    ("rise", "rises", "expected"),
    [
        (0.3, True, 0.0),
        (0.05, True, (RISE - 0.05) ** 2),
        (-0.1, True, (RISE + 0.1) ** 2),
        (0.05, False, 0.0),
    ],
)
def test_the_similarity_has_to_rise_by_enough(rise, rises, expected, monkeypatch):
    attributes = jnp.asarray(sample(4, seed=3))
    clip: Any = SimpleNamespace(encode_text=lambda tokens: jnp.zeros((len(tokens), 1)))
    positions = iter([jnp.zeros((4, 1, 1)), jnp.full((4, 1, 1), rise)])
    monkeypatch.setattr(train_clip, "disturbed_latents", lambda *_: next(positions))
    monkeypatch.setattr(train_clip, "draw", lambda generator, latents: latents[:, 0, 0])
    monkeypatch.setattr(train_clip, "clip_loss", lambda _, x, __: 1 - x)
    pairs = Pairs(attributes, attributes, jnp.full(4, rises), jnp.zeros((4, 8), jnp.int32))
    loss = rise_loss(clip, cast(Any, None), pairs, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, atol=1e-6)
