import numpy as np
import pytest

from avatars.attributes import NAMES, index, observe, sample
from avatars.train_clip import UNKNOWN, attack_texts, describe_batch


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


def test_an_attack_leaves_open_what_its_text_is_about(generator):
    attributes = sample(200, seed=1)
    texts, labels = attack_texts(attributes, generator)
    before = observe(attributes)
    changed = labels != before
    assert len(texts) == 200 and (labels[changed] == UNKNOWN).all()
    assert 0.5 < changed.any(-1).mean() < 1
    # A hat hides the hair, so that is left open too.
    for text, row, was in zip(texts, labels, before, strict=True):
        if text == "a person wearing a hat" and was[NAMES.index("headwear")] == 0:
            assert row[NAMES.index("hair")] == UNKNOWN
