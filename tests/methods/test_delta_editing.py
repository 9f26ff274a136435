import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from styleclip_jax.errors import InputError
from styleclip_jax.latents import synthesize
from styleclip_jax.losses import change_loss, image_features
from styleclip_jax.methods import delta_editing as module
from styleclip_jax.methods.delta_editing import (
    apply_delta_mapper,
    best_delta_strengths,
    best_strengths_of_change,
    edit_with_delta_mapper,
    move_styles,
    predict_change,
)
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.models import DeltaMapper, DeltaMapperConfig, Directions, DirectionsConfig

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.fixture(scope="module")
def mapper(generator, clip):
    config = DeltaMapperConfig(generator.config.style_dims, clip.config.embed_dim, width=8)
    return DeltaMapper(config, rngs=nnx.Rngs(0))


features_of = jax.jit(image_features)


@pytest.fixture(scope="module")
def dt(clip):
    direction = np.random.default_rng(5).normal(size=clip.config.embed_dim)
    return jnp.asarray(direction / np.linalg.norm(direction), jnp.float32)


@pytest.fixture
def directions(generator, clip):
    """Directions with random relevance."""
    dims = generator.config.style_dims
    widths = [dim for i, dim in enumerate(dims) if i % 3 != 1]
    directions = Directions(DirectionsConfig(widths, clip.config.embed_dim), rngs=nnx.Rngs(0))
    relevance = np.random.default_rng(6).normal(size=directions.relevance.shape)
    relevance /= np.linalg.norm(relevance, axis=-1, keepdims=True)
    directions.relevance[...] = jnp.asarray(relevance, jnp.float32)
    return directions


def test_an_edit_adds_the_residual_for_the_images_features(
    generator, mapper, clip, w_plus, styles, dt
):
    edit = edit_with_delta_mapper(generator, mapper, clip, w_plus, dt, 2.0)
    features = features_of(clip, jax.jit(synthesize)(generator, styles))
    directions = np.broadcast_to(dt, features.shape)
    residual = jax.jit(DeltaMapper.__call__)(mapper, styles, features, directions)
    for edited, style, change in zip(edit.styles, styles, residual, strict=True):
        expected = np.asarray(style) + 2 * np.asarray(change)
        np.testing.assert_allclose(edited, expected, rtol=1e-3, atol=1e-4)
    images = jax.jit(synthesize)(generator, edit.styles)
    np.testing.assert_allclose(edit.images, images, rtol=1e-3, atol=1e-4)
    same = apply_delta_mapper(generator, mapper, styles, features, directions, 2.0)
    np.testing.assert_allclose(same.images, edit.images, rtol=1e-3, atol=1e-3)


def test_the_automatic_strength_has_the_lowest_direction_loss(
    generator, mapper, clip, w_plus, dt, monkeypatch
):
    tried, chosen = (0.0, -3.0, 1.0, 4.0), set()
    monkeypatch.setattr(module, "_AUTOMATIC_STRENGTHS", tried[1:])
    for sign in (1, -1):
        edits = [
            edit_with_delta_mapper(generator, mapper, clip, w_plus, sign * dt, x) for x in tried
        ]
        features = np.stack([features_of(clip, edit.images) for edit in edits])
        losses = jax.jit(change_loss)(features, features[0], sign * dt, 0.35)
        best = best_delta_strengths(generator, mapper, clip, w_plus, sign * dt)
        lowest = np.argmin(losses, axis=0)
        np.testing.assert_array_equal(best, np.asarray(tried)[lowest])
        automatic = edit_with_delta_mapper(generator, mapper, clip, w_plus, sign * dt, None)
        for i, which in enumerate(lowest):
            expected = edits[which].images[i]
            np.testing.assert_allclose(automatic.images[i], expected, rtol=1e-3, atol=1e-3)
        chosen |= {*map(float, best)}
    assert len(chosen) > 1


def test_every_image_may_have_a_strength_of_its_own(generator, mapper, clip, w_plus, dt):
    strengths = jnp.linspace(-1.0, 2.0, len(w_plus))
    together = edit_with_delta_mapper(generator, mapper, clip, w_plus, dt, strengths)
    last = edit_with_delta_mapper(generator, mapper, clip, w_plus[-1:], dt, 2.0)
    np.testing.assert_allclose(together.images[-1:], last.images, rtol=1e-3, atol=1e-3)


def test_strength_zero_is_the_image_itself(generator, mapper, clip, styles, dt):
    edit = edit_with_delta_mapper(generator, mapper, clip, styles, dt, 0.0)
    jax.tree.map(np.testing.assert_array_equal, edit.styles, styles)


def test_channels_that_are_not_relevant_to_the_text_do_not_change(
    generator, mapper, clip, styles, dt, directions
):
    products = np.abs(np.asarray(directions.relevance[...]) @ np.asarray(dt))
    threshold = float(np.median(products))
    edit = edit_with_delta_mapper(
        generator, mapper, clip, styles, dt, directions=directions, threshold=threshold
    )
    moved = [np.any(a != b, axis=0) for a, b in zip(edit.styles, styles, strict=True)]
    convs = np.concatenate([m for i, m in enumerate(moved) if i % 3 != 1])
    np.testing.assert_array_equal(convs, products >= threshold)


def test_channels_that_change_too_little_stay(generator, mapper, clip, styles, dt):
    whole = edit_with_delta_mapper(generator, mapper, clip, styles, dt)
    changes = [np.asarray(a) - np.asarray(b) for a, b in zip(whole.styles, styles, strict=True)]
    least = float(np.median(np.abs(changes[0])))
    edit = edit_with_delta_mapper(generator, mapper, clip, styles, dt, -2.0, min_change=least)
    for edited, style, change in zip(edit.styles, styles, changes, strict=True):
        # Those next to the limit may be rounded to either side.
        clear = np.abs(np.abs(change) - least) > 1e-4
        expected = np.asarray(style) - 2 * np.where(np.abs(change) < least, 0, change)
        np.testing.assert_allclose(np.asarray(edited)[clear], expected[clear], rtol=1e-3, atol=1e-4)


def test_a_predicted_change_is_that_of_the_edit(generator, mapper, clip, styles, dt):
    change = predict_change(generator, mapper, clip, styles, dt, min_change=0.01)
    moved = move_styles(change, 2.0)
    edit = edit_with_delta_mapper(generator, mapper, clip, styles, dt, 2.0, min_change=0.01)
    for ours, theirs in zip(moved, edit.styles, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    after, before = (np.concatenate(x, axis=1) for x in (moved, styles))
    changes = after - before
    np.testing.assert_array_equal(change.changed, (changes != 0).sum(axis=1))
    np.testing.assert_allclose(change.largest, np.abs(changes).max(axis=1) / 2, rtol=1e-3)
    automatic = best_strengths_of_change(generator, mapper, clip, change, dt)
    best = best_delta_strengths(generator, mapper, clip, styles, dt, min_change=0.01)
    np.testing.assert_array_equal(automatic, best)
    still = predict_change(generator, mapper, clip, styles, dt, min_change=1e6)
    jax.tree.map(np.testing.assert_array_equal, move_styles(still, 2.0), styles)
    assert not still.changed.any()


def test_directions_of_w_are_refused(generator, mapper, clip, styles, dt):
    config = DirectionsConfig((generator.config.w_dim,), clip.config.embed_dim, space="w")
    directions = Directions(config, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="needs directions for stylespace"):
        edit_with_delta_mapper(generator, mapper, clip, styles, dt, directions=directions)


def test_a_direction_of_another_clip_is_refused(generator, mapper, clip, styles, dt):
    with pytest.raises(InputError, match=r"dt has shape \(3,\), this CLIP needs \(16,\)"):
        edit_with_delta_mapper(generator, mapper, clip, styles, dt[:3])


def test_a_mapper_for_any_text_is_not_applied_without_a_text(generator, mapper, styles):
    with pytest.raises(InputError, match="needs the direction of a text"):
        apply_mapper(generator, mapper, styles)
