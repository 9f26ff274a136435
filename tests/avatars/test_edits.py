"""Edits of the models that ship, scored by the classifier that no training used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import styleclip_jax as sc
from avatars.classifier import load
from avatars.scores import edit_score, read_labels
from avatars.texts import select

FACES = 16
# Texts that were not used in training or tuning.
TEXTS = ("hair=curly afro", "headwear=winter hat", "skin=dark", "mouth=sad")
MAPPERS = {
    "afro": ("hair", "curly afro"),
    "beard": ("facial_hair", "beard"),
    "blue_hair": ("hair_color", "blue"),
    "purple_hair": ("hair_color", "purple"),
    "smiling": ("mouth", "smiling"),
    "sunglasses": ("glasses", "sunglasses"),
    "winking": ("eyes", "wink"),
}


@pytest.fixture(scope="module")
def faces():
    """The generator, the classifier, latents of random faces and their labels."""
    generator, classifier = sc.load_generator(), load()
    latents = sc.sample_latents(generator, FACES, seed=77)
    images = jax.jit(sc.synthesize)(generator, latents)
    return generator, classifier, latents, read_labels(classifier, images)


@pytest.mark.usefixtures("optimized")
def test_optimization_changes_what_the_text_says_and_nothing_else(faces):
    generator, classifier, latents, before = faces
    clip, tokenizer = sc.load_clip(), sc.load_tokenizer()
    neutral = sc.encode_texts(clip, tokenizer, [sc.AVATARS_NEUTRAL])
    edits, count = select(TEXTS), 3
    texts = sc.encode_texts(clip, tokenizer, [edit.wordings[0] for edit in edits])
    result = sc.edit_latents(
        generator,
        clip,
        jnp.tile(latents[:count], (len(edits), 1, 1)),
        jnp.repeat(texts, count, axis=0),
        sc.AVATARS_CONFIG,
        neutral_features=neutral,
    )
    labels = read_labels(classifier, result.images).reshape(len(edits), count, -1)
    scores = [
        edit_score(before[:count], after, edit.slot, edit.value)
        for after, edit in zip(labels, edits, strict=True)
    ]
    mean = {name: np.mean([score[name] for score in scores]) for name in scores[0]}
    assert mean["before"] < 0.4
    assert mean["target"] >= 0.85 and mean["others"] >= 0.95 and mean["whole"] >= 0.6


def test_the_mapper_for_any_text_changes_what_the_text_says_and_nothing_else(faces):
    generator, classifier, latents, before = faces
    latents, before = latents[:8], before[:8]
    clip, tokenizer, mapper = sc.load_clip(), sc.load_tokenizer(), sc.load_mapper("any_text")
    assert isinstance(mapper, sc.models.DeltaMapper)
    scores = []
    for edit in select(TEXTS):
        dt = sc.text_direction(clip, tokenizer, edit.wordings[0], sc.AVATARS_NEUTRAL)
        images = sc.edit_with_delta_mapper(generator, mapper, clip, latents, dt, None).images
        scores.append(edit_score(before, read_labels(classifier, images), edit.slot, edit.value))
    mean = {name: np.mean([score[name] for score in scores]) for name in scores[0]}
    assert mean["target"] >= 0.85 and mean["others"] >= 0.95 and mean["whole"] >= 0.6


@pytest.mark.parametrize("name", sorted({*sc.pretrained_mappers()} - {"any_text"}))
def test_a_mapper_that_ships_changes_what_it_is_named_for_and_nothing_else(faces, name):
    generator, classifier, latents, before = faces
    images, _ = sc.apply_mapper(generator, sc.load_mapper(name), latents)
    score = edit_score(before, read_labels(classifier, images), *MAPPERS[name])
    assert score["target"] >= 0.85 and score["others"] >= 0.93 and score["whole"] >= 0.5
