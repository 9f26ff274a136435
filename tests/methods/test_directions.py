import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import fingerprint, load_clip, load_directions, save_model
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.losses import direction_loss, image_features
from styleclip_jax.methods import directions as module
from styleclip_jax.methods.directions import (
    automatic_threshold,
    best_strengths,
    check_fingerprints,
    edit_with_direction,
    move_latents,
    text_direction,
)
from styleclip_jax.methods.relevance import build_directions
from styleclip_jax.models import CLIP, Directions, DirectionsConfig, Generator
from styleclip_jax.models.directions import channel_widths

pytestmark = pytest.mark.usefixtures("strict_dtypes")

EMBED = 16

styles_of = jax.jit(Generator.styles)
synthesize = jax.jit(Generator.synthesize)
encode_text = jax.jit(CLIP.encode_text)


def make_directions(generator, layers=None, seed=0, **fields) -> Directions:
    space = fields.setdefault("space", "stylespace")
    widths = channel_widths(generator.config, space)[:layers]
    config = DirectionsConfig(widths, EMBED, **fields)
    rng = np.random.default_rng(seed)
    relevance = rng.normal(size=(config.channels, EMBED)).astype(np.float32)
    relevance /= np.linalg.norm(relevance, axis=1, keepdims=True)
    scales = rng.uniform(0.5, 2, config.channels).astype(np.float32)
    return build_directions(config, relevance, scales)


def with_config(directions: Directions, config: DirectionsConfig) -> Directions:
    assert directions.scales is not None
    arrays = (np.asarray(x[...]) for x in (directions.relevance, directions.scales))
    return build_directions(config, *arrays)


def direction(seed=0) -> jax.Array:
    dt = np.random.default_rng(100 + seed).normal(size=EMBED).astype(np.float32)
    return jnp.asarray(dt / np.linalg.norm(dt))


@pytest.fixture(scope="module")
def directions(generator) -> Directions:
    return make_directions(generator)


def official_change(directions, dt, threshold) -> np.ndarray:
    """GetBoundary of StyleCLIP.py."""
    r = np.asarray(directions.relevance[...]) @ np.asarray(dt)
    r[np.abs(r) < threshold] = 0
    return r / np.abs(r).max() * np.asarray(directions.scales[...])


def test_styles_change_by_the_papers_formula_and_torgb_never(generator, directions, w_plus, styles):
    edit = edit_with_direction(generator, directions, w_plus, direction(), 3.0, 0.2)
    change = official_change(directions, direction(), 0.2)
    start = 0
    for i, (before, after) in enumerate(zip(styles, edit.styles, strict=True)):
        expected = np.asarray(before)
        if i % 3 != 1:
            expected = expected + 3.0 * change[start : start + before.shape[1]]
            start += before.shape[1]
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)
    assert int(edit.changed) == np.count_nonzero(change)
    images = synthesize(generator, edit.styles)
    np.testing.assert_allclose(edit.images, images, rtol=1e-4, atol=1e-4)


def test_stylespace_latents_are_edited_like_w_plus(generator, directions, w_plus, styles):
    of_w, of_styles = (
        edit_with_direction(generator, directions, latents, direction()).images
        for latents in (w_plus, styles)
    )
    np.testing.assert_allclose(of_w, of_styles, rtol=1e-4, atol=1e-4)


def test_layers_without_relevance_do_not_change(generator, w_plus, styles):
    edit = edit_with_direction(generator, make_directions(generator, 3), w_plus, direction())
    same = [np.array_equal(a, b) for a, b in zip(styles, edit.styles, strict=True)]
    assert same == [False, True, False, False] + [True] * (len(styles) - 4)


def test_channels_of_w_change_all_layers(generator, w_plus):
    directions = make_directions(generator, space="w")
    edit = edit_with_direction(generator, directions, w_plus, direction(), 2.0, 0.1)
    change = official_change(directions, direction(), 0.1)
    expected = styles_of(generator, np.asarray(w_plus) + 2.0 * change)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), edit.styles, expected)


def test_several_texts_add_up(generator, directions, w_plus, styles):
    both = jnp.stack([direction(0), direction(1)])
    together = edit_with_direction(generator, directions, w_plus, both, 2.0).styles
    first = edit_with_direction(generator, directions, w_plus, direction(0), 2.0).styles
    after = edit_with_direction(generator, directions, first, direction(1), 2.0).styles
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), together, after)


def test_each_image_may_have_its_own_strength(generator, directions, w_plus):
    strengths = jnp.array([-1.0, 0.0, 2.0])
    edited = edit_with_direction(generator, directions, w_plus, direction(), strengths).images
    for i, strength in enumerate([-1.0, 0.0, 2.0]):
        alone = edit_with_direction(generator, directions, w_plus[i : i + 1], direction(), strength)
        np.testing.assert_allclose(edited[i], alone.images[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("space", ["stylespace", "w"])
def test_moved_latents_are_those_of_the_edit(generator, w_plus, space):
    directions = make_directions(generator, space=space)
    edit = edit_with_direction(generator, directions, w_plus, direction(), 2.0, 0.2)
    moved, changed = move_latents(generator, directions, w_plus, direction(), 2.0, 0.2)
    assert isinstance(moved, tuple) == (space == "stylespace")
    styles = moved if isinstance(moved, tuple) else styles_of(generator, moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), styles, edit.styles)
    assert changed == edit.changed


def test_the_automatic_strength_has_the_lowest_direction_loss(generator, clip, w_plus, monkeypatch):
    directions, chosen = make_directions(generator, space="w"), set()
    tried = (0.0, -3.0, 1.0, 4.0)
    features_of, loss_of = jax.jit(image_features), jax.jit(direction_loss)
    monkeypatch.setattr(module, "_AUTOMATIC_STRENGTHS", tried[1:])
    for seed in range(3):
        dt = direction(seed)
        # Unit text features whose difference has this direction.
        across = np.eye(EMBED, dtype=np.float32)[0] - np.asarray(dt)[0] * np.asarray(dt)
        across /= np.linalg.norm(across)
        text, neutral = (0.8 * across + 0.6 * sign * np.asarray(dt) for sign in (1, -1))
        images = [
            edit_with_direction(generator, directions, w_plus, dt, strength, 0.2).images
            for strength in tried
        ]
        features = [features_of(clip, x) for x in images]
        losses = [loss_of(x, features[0], text[None], neutral[None], 0.35) for x in features]
        best = best_strengths(generator, directions, clip, w_plus, dt, 0.2)
        np.testing.assert_array_equal(best, np.asarray(tried)[np.argmin(losses, axis=0)])
        chosen |= {*map(float, best)}
    assert len(chosen) > 1


def test_other_texts_and_settings_compile_nothing(generator, directions, w_plus):
    program: Any = module._edit
    edit_with_direction(generator, directions, w_plus, direction())
    programs = program._cache_size()
    edit_with_direction(generator, directions, w_plus, direction(1), -3.0, 0.11)
    assert program._cache_size() == programs


def test_edits_have_gradients(generator, directions, w_plus):
    def brightness(strength: Any, dt: jax.Array, latents: jax.Array) -> jax.Array:
        return edit_with_direction(generator, directions, latents, dt, strength).images.mean()

    gradients = jax.jit(jax.grad(brightness, (0, 1, 2)))(2.0, direction(), w_plus)
    assert all(np.isfinite(g).all() and np.any(g) for g in gradients)


def test_a_threshold_that_keeps_no_channel_is_refused_with_the_largest_that_does(
    generator, directions, w_plus
):
    with pytest.raises(InputError, match=r"reaches the threshold 0\.99; .* most 0\.\d+$") as e:
        edit_with_direction(generator, directions, w_plus, direction(), 4.0, 0.99)
    largest = float(str(e.value).split()[-1])
    assert (
        edit_with_direction(generator, directions, w_plus, direction(), 4.0, largest).changed == 1
    )


def test_images_do_not_change_under_jit_if_no_channel_is_kept(generator, directions, w_plus):
    edit = jax.jit(lambda t: edit_with_direction(generator, directions, w_plus, direction(), 4, t))
    images = jax.jit(Generator.__call__)(generator, w_plus)
    np.testing.assert_allclose(edit(0.99).images, images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [0, 5, 20, 10_000])
def test_the_automatic_threshold_is_the_largest_that_keeps_enough(directions, channels):
    products = np.abs(np.asarray(directions.relevance[...]) @ np.asarray(direction()))
    enough = [t for t in np.arange(10, 30) / 100 if (products >= t).sum() > channels]
    expected = max(enough, default=0.1)
    assert float(automatic_threshold(directions, direction(), channels)) == pytest.approx(expected)


@pytest.mark.parametrize("templates", [(), IMAGENET_TEMPLATES])
def test_a_text_direction_is_the_unit_difference_of_unit_features(long_text_clip_path, templates):
    clip, tokenizer = load_clip(long_text_clip_path), load_tokenizer(long_text_clip_path)

    def features(text: str) -> np.ndarray:
        sentences = [t.format(text.removeprefix("a ")) for t in templates] or [text]
        x = np.asarray(encode_text(clip, jnp.asarray(tokenizer(sentences))))
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(axis=0)
        return x / np.linalg.norm(x)

    expected = features("a hat") - features("a face")
    dt = text_direction(clip, tokenizer, "a hat", "a face", templates)
    np.testing.assert_allclose(dt, expected / np.linalg.norm(expected), atol=1e-4)
    with pytest.raises(InputError, match="the same to this CLIP"):
        text_direction(clip, tokenizer, "a hat", "a hat", templates)


def test_directions_of_other_models_are_refused(generator, clip, random_model):
    fingerprints = {"generator": fingerprint(generator), "clip": fingerprint(clip)}
    config = dataclasses.replace(make_directions(generator).config, **fingerprints)
    known = with_config(make_directions(generator), config)
    check_fingerprints(known, generator, clip)
    check_fingerprints(make_directions(generator), generator, clip)
    for other in ("generator", "clip"):
        foreign = with_config(known, dataclasses.replace(config, **{other: "0" * 64}))
        with pytest.raises(InputError, match=f"(?i)made for another {other}"):
            check_fingerprints(foreign, generator, clip)
    wider = random_model(
        type(generator), dataclasses.replace(generator.config, channel_max=16), seed=1
    )
    with pytest.raises(InputError, match="this generator has"):
        check_fingerprints(known, wider, clip)


def test_directions_survive_a_checkpoint(directions, tmp_path):
    save_model(tmp_path / "directions", directions, dtype="float16")
    loaded = load_directions(tmp_path / "directions")
    assert loaded.config == directions.config
    np.testing.assert_allclose(loaded.relevance[...], directions.relevance[...], atol=1e-3)
    assert loaded.relevance[...].dtype == jnp.float32


def test_without_scales_there_is_no_edit(generator, directions, w_plus):
    bare = build_directions(directions.config, np.asarray(directions.relevance[...]), None)
    with pytest.raises(InputError, match="have no scales"):
        edit_with_direction(generator, bare, w_plus, direction())
