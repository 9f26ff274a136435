import jax
import numpy as np
import pytest

from styleclip_jax.errors import InputError
from styleclip_jax.latents import sample_latents, squared_distance, synthesize

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_the_first_samples_of_a_seed_do_not_depend_on_their_number(generator, w_plus):
    np.testing.assert_allclose(sample_latents(generator, 1, seed=0), w_plus[:1], atol=1e-6)
    assert np.abs(sample_latents(generator, 1, seed=1) - w_plus[:1]).max() > 0.1


def test_truncation_pulls_samples_towards_the_mean(generator, w_plus):
    full = sample_latents(generator, 3, seed=0, truncation=1.0)
    mean = generator.mean_latents(3)
    np.testing.assert_allclose(w_plus - mean, 0.7 * (full - mean), atol=1e-5)


def test_images_of_a_walk_change_gradually(generator):
    walk = sample_latents(generator, 64, seed=0, redraw=0.05)
    single = sample_latents(generator, 64, seed=0)
    np.testing.assert_allclose(walk[:1], single[:1], atol=1e-6)
    steps, jumps = (np.abs(np.diff(w[:, 0], axis=0)).mean() for w in (walk, single))
    assert 0 < steps < 0.5 * jumps
    # The ends of the walk are as far apart as independent images.
    np.testing.assert_allclose(np.std(walk, axis=0).mean(), np.std(single, axis=0).mean(), rtol=0.5)


def test_no_samples_are_refused(generator):
    with pytest.raises(InputError, match="0"):
        sample_latents(generator, 0, seed=0)


def test_more_images_than_memory_holds_are_refused(generator):
    with pytest.raises(InputError, match=r"1000000000 images need \d+ GiB"):
        sample_latents(generator, 10**9, seed=0)


def test_a_truncation_that_overflows_is_refused(generator):
    with pytest.raises(InputError, match=r"truncation is 1e\+38"):
        sample_latents(generator, 2, seed=0, truncation=1e38)


def test_both_kinds_of_latents_give_the_same_images(generator, w_plus, styles):
    compiled = jax.jit(synthesize, static_argnames="resolution")
    np.testing.assert_allclose(compiled(generator, w_plus), compiled(generator, styles), atol=1e-5)
    assert compiled(generator, styles, resolution=8).shape == (3, 8, 8, 3)


def test_the_distance_is_a_sum_over_all_entries_of_each_latent(w_plus, styles):
    np.testing.assert_allclose(
        squared_distance(w_plus + 0.5, w_plus), 0.25 * w_plus[0].size, rtol=1e-5
    )
    moved = (styles[0] + 2.0, *styles[1:])
    expected = 4.0 * styles[0].shape[1]
    np.testing.assert_allclose(squared_distance(moved, styles), expected, rtol=1e-5)
