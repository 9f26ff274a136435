import numpy as np
import pytest

from avatars.attributes import NAMES, observe, sample
from avatars.evaluate import grid, histograms


def test_histograms_are_shares_of_visible_labels():
    labels = observe(sample(300, seed=0))
    shares = histograms(labels)
    for slot in NAMES:
        assert sum(shares[slot].values()) == pytest.approx(1)
    hats = np.mean(labels[:, NAMES.index("headwear")] != 0)
    assert shares["hair"]["hidden"] == pytest.approx(hats)
    assert shares["skin"]["pale"] == np.mean(labels[:, NAMES.index("skin")] == 0)


def test_a_grid_is_padded_with_white():
    images = np.zeros((3, 2, 2, 3))
    sheet = np.asarray(grid(images, 2))
    assert sheet.shape == (4, 4, 3)
    assert (sheet[2:, 2:] == 255).all() and (sheet[:2] < 255).all()
