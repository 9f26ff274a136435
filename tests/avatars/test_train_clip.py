import functools
import json
import re
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from avatars import train_clip
from avatars.attributes import NAMES, observe, sample
from avatars.captions import LANGUAGES, Truth, captions, fits, truths
from avatars.train_clip import (
    CARDINALITIES,
    CONTEXT_LENGTH,
    MAX_LOGIT_SCALE,
    RISE,
    RISE_WEIGHT,
    STILL_WEIGHT,
    Triples,
    carried_over,
    change_elsewhere,
    contrastive_loss,
    describe_batch,
    text_attribute_loss,
    train_tokenizer,
    triple_loss,
)
from styleclip_jax.io.text import Tokenizer
from styleclip_jax.models.clip import CLIP, CLIPConfig


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class ShortTexts(Tokenizer):
    """A tokenizer whose context is too short for some captions."""

    def __init__(self):
        """Needs no vocabulary."""

    def fits(self, text):
        return len(text) < 60


def test_captions_fit_their_own_images(rng):
    labels = observe(sample(50, seed=0))
    texts, meanings = describe_batch(labels, ShortTexts(), rng, 0.3)
    fit = fits(truths(meanings), labels)
    assert len(texts) == 50 and max(map(len, texts)) < 60
    assert (fit.diagonal() == 1).all() and 0 < np.nanmean(fit) < 1


def test_the_share_of_ukrainian_captions_is_as_requested(rng):
    labels = observe(sample(200, seed=0))
    cyrillic = re.compile("[\u0400-\u04ff]")
    for share in (0, 0.2, 1):
        texts, _ = describe_batch(labels, ShortTexts(), rng, share)
        assert np.mean([bool(cyrillic.search(x)) for x in texts]) == pytest.approx(share, abs=0.1)


def test_the_meaning_of_a_text_is_what_it_states():
    told = Truth(frozenset({"glasses", "sunglasses"}), frozenset())
    table = truths([{"glasses": told}])
    expected = [
        np.full((1, count), 1 / count) if name != "glasses" else np.array([[0, 0.5, 0.5]])
        for name, count in zip(NAMES, CARDINALITIES, strict=True)
    ]
    heads = nnx.Linear(1, sum(CARDINALITIES), rngs=nnx.Rngs(0))
    logits = np.log(np.concatenate(expected, -1) + 1e-9) / MAX_LOGIT_SCALE
    heads.kernel[...] = jnp.asarray(logits, jnp.float32)
    loss = jax.jit(text_attribute_loss)(heads, jnp.ones((1, 1)), table)
    entropies = [-np.sum(x * np.log(x + 1e-9)) for x in expected]
    np.testing.assert_allclose(loss, np.mean(entropies), rtol=1e-4)


def test_known_tokens_keep_their_embeddings_in_another_vocabulary(random_model):
    def clip(vocab, seed):
        config = CLIPConfig(
            image_size=8, patch_size=8, vision_width=8, vision_layers=1, vision_heads=1,
            text_width=8, text_layers=1, text_heads=1, embed_dim=4, context_length=4,
            vocab_size=len(vocab),
        )  # fmt: skip
        return random_model(CLIP, config, seed)

    old, new = {"a": 0, "b": 1, "end": 2}, {"c": 0, "b": 1, "d": 2, "a": 3, "end": 4}
    trained, untrained = clip(old, 1), clip(new, 2)
    result = carried_over(trained, old, untrained, new)
    assert result.config == untrained.config
    encode_text, encode_image = jax.jit(CLIP.encode_text), jax.jit(CLIP.encode_image)
    np.testing.assert_array_equal(
        encode_text(result, np.array([[3, 1, 4, 0]])),
        encode_text(trained, np.array([[0, 1, 2, 0]])),
    )
    pixels = jnp.ones((1, 8, 8, 3))
    np.testing.assert_array_equal(encode_image(result, pixels), encode_image(trained, pixels))
    fresh = untrained.text.token_embedding.embedding[...]
    np.testing.assert_array_equal(result.text.token_embedding.embedding[...][0], fresh[0])


@pytest.fixture(scope="module")
def tokenizer():
    files = train_tokenizer(num_captions=6000)
    merges = files["merges.txt"].decode().splitlines()[1:]
    return Tokenizer(json.loads(files["vocab.json"]), merges, CONTEXT_LENGTH)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_caption_fits_the_context_and_its_tokens_are_known(tokenizer, language):
    texts = captions(sample(3000, seed=11), np.random.default_rng(12), language)
    tokens = tokenizer(texts)  # Raises if a text is too long.
    end = tokens.max()
    assert ((tokens == end).sum(1) == 1).all()  # The end token also stands for unknown words.
    lengths, words = (tokens != 0).sum(1), np.array([len(text.split()) for text in texts])
    assert (lengths / (words + 2)).mean() < {"en": 1.5, "uk": 2.0}[language]


def test_a_caption_that_fits_no_image_is_only_a_negative():
    features = np.eye(3, dtype=np.float32)
    clip: Any = SimpleNamespace(
        encode_image=lambda x: x, encode_text=lambda x: x, logit_scale=jnp.zeros(())
    )
    loss = jax.jit(functools.partial(contrastive_loss, clip))
    two, *_ = loss(features[:2], features[:2], features[:2, :2])
    three, *_ = loss(features[:2], features, features[:, :2])
    assert np.isfinite(three) and three != two


def test_the_third_image_of_a_triple_changes_one_slot_but_not_that_of_the_text():
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
def test_features_must_move_along_a_text_only_if_it_describes_the_change(
    rise, moved, rises, expected, monkeypatch
):
    """Features have two entries; the direction of every text is the first one."""
    positions = iter((0.0, rise, moved))

    def unit_features(_, key):
        along = next(positions)
        return jnp.tile(jnp.array([along, np.sqrt(1 - along**2)]), (4, 1))

    clip: Any = SimpleNamespace(
        config=SimpleNamespace(image_size=8),
        encode_text=lambda tokens: jnp.array([[1.0, 0.0]] * 4 + [[-1.0, 0.0]]),
    )
    monkeypatch.setattr(train_clip, "perturbed_latents", unit_features)
    monkeypatch.setattr(train_clip, "synthesize", lambda generator, latents, size: latents)
    monkeypatch.setattr(train_clip, "image_features", lambda clip, images: images)
    attributes = jnp.asarray(sample(4, seed=3))
    tokens = jnp.zeros((4, 8), jnp.int32)
    triples = Triples(attributes, attributes, attributes, jnp.full(4, rises), tokens, tokens[:1])
    loss = triple_loss(clip, cast(Any, None), triples, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, atol=1e-5)
