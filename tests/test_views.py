import jax
import jax.numpy as jnp
import numpy as np
import pytest

from styleclip_jax.views import VIEWS, random_views

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)), jnp.float32)


jitted_views = jax.jit(random_views, static_argnames=("count", "kinds"))


def views(images, seed=0, count=8, kinds=tuple(VIEWS)):
    return np.asarray(jitted_views(images, jax.random.key(seed), count, tuple(kinds)))


def test_a_key_decides_the_views(images):
    first = views(images)
    assert first.shape == (8, 3, 32, 32, 3)
    np.testing.assert_array_equal(first, views(images))
    assert (first != views(images, seed=1)).any(axis=(1, 2, 3, 4)).all()
    assert all((first[0] != other).any() for other in first[1:])


def test_views_do_not_depend_on_the_other_images(images):
    together, alone = views(images), views(images[1:2])
    np.testing.assert_allclose(together[:, 1:2], alone, atol=1e-6)


@pytest.mark.parametrize("kind", VIEWS)
def test_a_kind_of_view_does_not_depend_on_the_other_kinds(images, kind):
    gray = jnp.full_like(images, 0.1)
    # Shifts and zooms do not change an image of one color.
    others = [other for other in ("shift", "resize") if other != kind]
    one, several = (views(gray, kinds=kinds) for kinds in ([kind], [*others, kind]))
    np.testing.assert_allclose(one, several, atol=1e-5)


def test_shifts_move_by_whole_pixels_and_repeat_the_border(images):
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    windows = [padded[:, i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
    found = set()
    for view in views(images, count=32, kinds=["shift"]):
        matches = [i for i, window in enumerate(windows) if np.abs(view - window).max() < 1e-5]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) > 8


def test_noise_is_small_and_of_several_strengths(images):
    noise = views(images, kinds=["noise"]) - np.asarray(images)
    sigmas = noise.std(axis=(1, 2, 3, 4))
    assert sigmas.max() <= 0.051 and sigmas.min() < 0.8 * sigmas.max()
    np.testing.assert_allclose(noise.mean(), 0, atol=1e-3)


def test_a_zoom_keeps_the_center_and_its_range():
    ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 32)[:, None, None], (1, 32, 32, 3))
    zoomed = views(ramp, count=32, kinds=["resize"])[:, 0, :, 0, 0]
    np.testing.assert_allclose(zoomed[:, 15] + zoomed[:, 16], 0, atol=1e-5)
    slopes = (zoomed[:, 20] - zoomed[:, 11]) / (ramp[0, 20, 0, 0] - ramp[0, 11, 0, 0])
    assert (1 / slopes > 0.8 - 1e-4).all() and (1 / slopes < 1.2 + 1e-4).all()
    assert (slopes < 0.95).any() and (slopes > 1.05).any()


def test_color_changes_are_those_of_diffaugment(images):
    for view in views(images, kinds=["color"]):
        # For every pixel: view - level = contrast * (gray - level + saturation * (image - gray)).
        gray = np.asarray(images).mean(axis=-1, keepdims=True)
        level = np.asarray(images).mean(axis=(1, 2, 3), keepdims=True)
        columns = [np.ones_like(images), gray - level, images - gray]
        matrix = np.stack([np.broadcast_to(c, images.shape).ravel() for c in columns], axis=1)
        target = (view - level).ravel()
        (brightness, contrast, both), residual, *_ = np.linalg.lstsq(matrix, target)
        assert residual < 1e-6
        assert abs(brightness) <= 0.5 and 0.5 <= contrast <= 1.5 and 0 <= both / contrast <= 2


def test_a_cutout_is_gray_and_covers_at_most_a_quarter(images):
    cut = (views(images, kinds=["cutout"]) == 0).all(axis=-1)
    shares = cut.mean(axis=(1, 2, 3))
    # Its center may be in a corner.
    assert (shares <= 1 / 4).all() and (shares >= 1 / 16).all()
    assert (cut == cut[:, :1]).all()


def test_gradients_pass_through_all_views(images):
    @jax.jit
    @jax.grad
    def gradient_of(images):
        return random_views(images, jax.random.key(0), 8, tuple(VIEWS)).sum()

    gradient = np.asarray(gradient_of(images))
    assert np.isfinite(gradient).all() and (gradient != 0).mean() > 0.9
