import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from styleclip_jax import losses
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import build, flatten
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.losses import direction_loss, image_features
from styleclip_jax.methods import optimization
from styleclip_jax.methods.linear_start import sample_features
from styleclip_jax.methods.optimization import (
    OptimizeConfig,
    best_fits,
    edit_latents,
    learning_rate_schedule,
)
from styleclip_jax.models import CLIP, Generator, GeneratorConfig
from styleclip_jax.views import VIEWS

pytestmark = pytest.mark.usefixtures("strict_dtypes")

jitted_clip_loss = jax.jit(losses.clip_loss)
CONFIG = OptimizeConfig(steps=8)
DIRECTION = dataclasses.replace(CONFIG, guidance="direction", views=2)


@pytest.fixture(scope="module")
def generator(random_model):
    """A generator of 8 pixels, because many settings compile a program of their own."""
    config = GeneratorConfig(
        resolution=8, z_dim=12, w_dim=16, mapping_layers=2, channel_base=128, channel_max=8
    )
    return random_model(Generator, config, seed=1)


@pytest.fixture(scope="module")
def latents(generator):
    return sample_latents(generator, 3, seed=0, truncation=1.0)


@pytest.fixture(scope="module")
def texts():
    return jax.random.normal(jax.random.key(5), (3, 16))


@pytest.fixture(scope="module")
def neutral():
    return jax.random.normal(jax.random.key(6), (1, 16))


@pytest.fixture
def in_one_loop(monkeypatch):
    """Makes edit_latents take the path of accelerators."""
    monkeypatch.setattr(optimization, "_advance_from_host", optimization._advance)


def clip_loss(clip, images, text_features):
    return np.asarray(jitted_clip_loss(clip, images, text_features))


def assert_same(result, other):
    np.testing.assert_allclose(result.losses, other.losses, atol=1e-5)
    np.testing.assert_array_equal(result.steps, other.steps)
    np.testing.assert_array_equal(result.failed_at, other.failed_at)
    pairs = zip(jax.tree.leaves(result.latents), jax.tree.leaves(other.latents), strict=True)
    for one, another in pairs:
        np.testing.assert_allclose(one, another, atol=1e-4)
    np.testing.assert_allclose(result.images, other.images, atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [DIRECTION, dataclasses.replace(CONFIG, space="stylespace", patience=2, min_improvement=10)],
)
def test_the_compiled_loop_and_the_steps_from_the_host_agree(
    generator, clip, latents, texts, neutral, config, request
):
    edit = functools.partial(
        edit_latents, generator, clip, latents, texts, config, neutral_features=neutral
    )
    from_host = edit()
    request.getfixturevalue("in_one_loop")
    assert_same(edit(), from_host)


@pytest.mark.parametrize("choices", [{"space": "stylespace"}, {"guidance": "direction"}])
def test_the_step_is_traced_once_whatever_the_numbers(
    generator, clip, latents, texts, neutral, choices, monkeypatch
):
    traces = []

    def counted(problem, state, program):
        traces.append(program)
        return optimization._step(problem, state, program)

    step = jax.jit(counted, static_argnames="program")
    monkeypatch.setattr(optimization, "_step_from_host", step)
    config = OptimizeConfig(steps=4, patience=3, **choices)
    other = OptimizeConfig(
        steps=6,
        learning_rate=0.2,
        l2_lambda=0,
        orthogonal_lambda=0,
        keep_lambda=1,
        stop_loss=-1,
        min_improvement=0,
        **choices,
    )
    references = {"neutral_features": neutral, "keep_features": texts}
    for settings in (config, config, other):
        edit_latents(generator, clip, latents, texts, settings, **references)
    assert len(traces) == 1


def test_numbers_may_be_traced_or_one_per_image(generator, clip, latents, texts):
    weights = jnp.array([0.0, 0.1, 1.0])

    def edit(l2_lambda, latents, texts):
        config = dataclasses.replace(CONFIG, l2_lambda=l2_lambda)
        return edit_latents(generator, clip, latents, texts, config).latents

    mapped = jnp.asarray(jax.vmap(edit)(weights, latents[:, None], texts[:, None]))[:, 0]
    per_image = edit(weights, latents, texts)
    np.testing.assert_allclose(mapped, per_image, atol=1e-4)
    np.testing.assert_allclose(per_image[1:2], edit(0.1, latents[1:2], texts[1:2]), atol=1e-4)
    with pytest.raises(InputError, match=r"l2_lambda has shape \(3,\), expected one number or"):
        edit(weights, latents[:2], texts[:2])


def test_it_can_be_part_of_a_compiled_function(generator, clip, latents, texts):
    edit = jax.jit(edit_latents, static_argnames="config")
    compiled = edit(generator, clip, latents, texts, config=CONFIG)
    assert_same(compiled, edit_latents(generator, clip, latents, texts, CONFIG))


def test_the_settings_may_be_left_out(generator, clip, latents, texts):
    losses = jax.eval_shape(lambda w: edit_latents(generator, clip, w, texts).losses, latents)
    assert losses.shape == (OptimizeConfig().steps, len(latents))


def test_the_same_input_gives_the_same_bits(generator, clip, latents, texts):
    first, second = (edit_latents(generator, clip, latents, texts, CONFIG) for _ in range(2))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("config", [CONFIG, DIRECTION])
def test_every_image_of_a_batch_is_edited_as_if_it_were_alone(
    generator, clip, latents, texts, neutral, config
):
    edit = functools.partial(edit_latents, config=config, neutral_features=neutral)
    together = edit(generator, clip, latents, texts)
    assert together.losses.shape == (8, 3)
    alone = edit(generator, clip, latents[1:2], texts[1:2])
    np.testing.assert_allclose(together.losses[:, 1:2], alone.losses, atol=1e-5)
    np.testing.assert_allclose(together.latents[1:2], alone.latents, atol=1e-3)


def test_the_edit_brings_the_images_closer_to_the_text(generator, clip, latents, texts):
    config = OptimizeConfig(steps=30, l2_lambda=0.0)
    result = edit_latents(generator, clip, latents, texts[:1], config)
    before = clip_loss(clip, jax.jit(synthesize)(generator, latents), texts[:1])
    np.testing.assert_allclose(result.losses[0], before, atol=1e-5)
    assert (clip_loss(clip, result.images, texts[:1]) < before - 0.05).all()
    np.testing.assert_allclose(
        result.images, jax.jit(synthesize)(generator, result.latents), atol=1e-5
    )


def test_the_direction_is_that_from_the_neutral_text_and_the_original(
    generator, clip, latents, texts, neutral
):
    config = OptimizeConfig(
        steps=30, learning_rate=0.05, l2_lambda=0, guidance="direction", orthogonal_lambda=0
    )
    result = edit_latents(generator, clip, latents, texts, config, neutral_features=neutral)
    np.testing.assert_allclose(result.losses[0], 1, atol=1e-5)
    before = jax.jit(synthesize)(generator, latents)
    text, plain = (
        clip_loss(clip, before, x) - clip_loss(clip, result.images, x) for x in (texts, neutral)
    )
    # The text gained more than the neutral one.
    assert (text - plain > 0.1).all()


def test_a_larger_orthogonal_lambda_preserves_what_the_text_does_not_mention(
    generator, clip, latents, texts, neutral
):
    other = jax.random.normal(jax.random.key(7), (1, 16))
    config = OptimizeConfig(steps=30, l2_lambda=0, guidance="direction", orthogonal_lambda=0)
    free, held = (
        edit_latents(
            generator,
            clip,
            latents,
            texts,
            dataclasses.replace(config, orthogonal_lambda=weight),
            neutral_features=neutral,
        ).images
        for weight in (0.0, 3.0)
    )
    before = jax.jit(synthesize)(generator, latents)
    moved = [
        np.abs(clip_loss(clip, x, other) - clip_loss(clip, before, other)) for x in (free, held)
    ]
    assert moved[1].mean() < 0.7 * moved[0].mean()


def test_texts_to_keep_fit_as_before(generator, clip, latents, texts):
    config = OptimizeConfig(steps=30, l2_lambda=0)
    # The wanted text is the sum of another text and the text to keep.
    anchor = jax.random.normal(jax.random.key(7), (1, 16))
    wanted = texts[:1] + anchor
    before = jax.jit(synthesize)(generator, latents)

    def changes(**keep):
        images = edit_latents(generator, clip, latents, wanted, config, **keep).images
        return [clip_loss(clip, before, x) - clip_loss(clip, images, x) for x in (anchor, wanted)]

    (free, _), (held, gained) = changes(), changes(keep_features=anchor)
    assert (np.abs(held) < 0.02).all() and (free > 0.1).all()
    assert (gained > 0.02).all()


def test_a_key_decides_the_views(generator, clip, latents, texts):
    config = dataclasses.replace(CONFIG, views=2)
    first, same, other, plain = (
        np.asarray(edit_latents(generator, clip, latents, texts, c, key=jax.random.key(k)).losses)
        for c, k in ((config, 0), (config, 0), (config, 1), (CONFIG, 0))
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-5 and np.abs(first - plain).max() > 1e-5
    np.testing.assert_allclose(first[0], plain[0], atol=0.1)


def test_views_of_an_image_that_is_not_edited_change_nothing(generator, clip, latents, texts):
    neutral = texts[:1, ::-1]
    config = dataclasses.replace(DIRECTION, steps=3, learning_rate=0, keep_lambda=1.0)
    result = edit_latents(
        generator,
        clip,
        latents,
        texts,
        dataclasses.replace(config, view_kinds=tuple(VIEWS)),
        neutral_features=neutral,
        keep_features=neutral,
    )
    np.testing.assert_allclose(result.losses, 1, atol=1e-5)


def test_the_loss_of_several_clips_is_their_mean(generator, clip, latents, texts, random_model):
    clips = (clip, random_model(CLIP, clip.config, seed=9))
    features = (texts, texts[:, ::-1])
    config = dataclasses.replace(CONFIG, l2_lambda=0)
    together = edit_latents(generator, clips, latents, features, config).losses[0]
    each = [
        edit_latents(generator, *pair, config=config).losses[0]
        for pair in zip(clips, (latents, latents), features, strict=True)
    ]
    np.testing.assert_allclose(together, np.mean(each, axis=0), atol=1e-5)
    with pytest.raises(InputError, match="text_features are for 1 CLIPs, expected 2"):
        edit_latents(generator, clips, latents, features[:1], config)


@pytest.fixture(scope="module")
def samples(generator, clip):
    """Eleven random images and CLIP's features of them."""
    found = sample_features(generator, clip, 11, seed=1, truncation=1.0)
    latents = sample_latents(generator, 11, seed=1, truncation=1.0)
    np.testing.assert_array_equal(found.latents, latents[:, 0])
    return found, jax.jit(synthesize)(generator, latents)


def test_the_image_that_fits_best_is_found_for_every_text(samples, clip, texts):
    found, images = samples
    best = best_fits(found, texts)
    expected = [int(np.argmin(clip_loss(clip, images, text[None]))) for text in np.asarray(texts)]
    assert best.tolist() == expected


def test_the_image_that_changes_most_in_the_direction_of_the_text_fits_best(samples, clip, texts):
    found, images = samples
    neutral = texts[:1, ::-1]
    config = dataclasses.replace(CONFIG, guidance="direction", orthogonal_lambda=0.2)
    best = best_fits(found, texts, config, neutral)
    see = jax.jit(image_features, static_argnames="preprocess")
    features = np.asarray(see(clip, images, preprocess=config.preprocess))
    loss = jax.jit(direction_loss)
    for text, chosen in zip(np.asarray(texts), best, strict=True):
        losses = loss(features, features.mean(0), text[None], neutral, 0.2)
        assert chosen == np.argmin(losses)
    with pytest.raises(InputError, match="neutral_features are missing"):
        best_fits(found, texts, config)


def test_a_larger_l2_lambda_keeps_the_latents_closer(generator, clip, latents, texts):
    moved = [
        np.abs(
            np.asarray(edit_latents(generator, clip, latents, texts, config).latents)
            - np.asarray(latents)
        ).sum()
        for config in (CONFIG, dataclasses.replace(CONFIG, l2_lambda=1.0))
    ]
    assert moved[1] < 0.8 * moved[0]


def test_stylespace_edits_do_not_change_the_torgb_styles(generator, clip, latents, texts):
    styles = jax.jit(Generator.styles)(generator, latents)
    config = dataclasses.replace(CONFIG, space="stylespace")
    result = edit_latents(generator, clip, styles, texts, config)
    for i, (before, after) in enumerate(zip(styles, result.latents, strict=True)):
        assert np.array_equal(before, after) == (i in generator.config.rgb_style_indices)


def test_in_w_all_layers_change_by_the_same_amount(generator, clip, latents, texts):
    config = dataclasses.replace(CONFIG, space="w")
    edited = edit_latents(generator, clip, latents, texts, config).latents
    moved = np.asarray(edited) - np.asarray(latents)
    assert (np.abs(moved).max(axis=(1, 2)) > 1e-3).all()
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1], moved.shape), atol=1e-6)


def test_generating_in_a_direction_edits_the_start(generator, clip, latents, texts):
    config = OptimizeConfig(steps=30, guidance="direction")
    results = [
        edit_latents(
            generator,
            clip,
            latents,
            texts,
            dataclasses.replace(config, mode=mode),
            neutral_features=texts[:1, ::-1],
        )
        for mode in ("edit", "generate")
    ]
    np.testing.assert_array_equal(results[0].latents, results[1].latents)


def test_generating_has_no_distance_term(generator, clip, texts):
    start = generator.mean_latents(1)
    free, held = (
        edit_latents(
            generator, clip, start, texts[:1], OptimizeConfig(steps=8, mode=mode, l2_lambda=100.0)
        )
        for mode in ("generate", "edit")
    )
    final = clip_loss(clip, free.images, texts[:1])
    # Without a distance term, the loss is CLIP's alone.
    assert final < free.losses[0] - 0.01
    distances = [np.abs(np.asarray(x.latents) - np.asarray(start)).max() for x in (held, free)]
    assert distances[0] < distances[1]


def test_the_guide_resolution_is_for_the_losses_only(generator, clip, latents, texts):
    config = dataclasses.replace(CONFIG, guide_resolution=4)
    result = edit_latents(generator, clip, latents, texts, config)
    assert result.images.shape == (3, 8, 8, 3)
    guide = jax.jit(synthesize, static_argnames="resolution")(generator, latents, resolution=4)
    np.testing.assert_allclose(result.losses[0], clip_loss(clip, guide, texts), atol=1e-5)


@pytest.mark.parametrize("path", ["from the host", "in one loop"])
def test_an_image_whose_loss_is_low_enough_no_longer_changes(
    generator, clip, latents, texts, path, request
):
    if path == "in one loop":
        request.getfixturevalue("in_one_loop")
    free = edit_latents(generator, clip, latents, texts, OptimizeConfig(steps=30, l2_lambda=0.0))
    # Slightly above a loss, so that rounding does not decide.
    threshold = float(np.max(free.losses[15])) + 1e-4
    below = np.asarray(free.losses) < threshold
    expected = 1 + below.argmax(axis=0)
    assert below.any(axis=0).all() and len(set(expected)) > 1
    config = OptimizeConfig(steps=30, l2_lambda=0.0, stop_loss=threshold)
    result = edit_latents(generator, clip, latents, texts, config)
    np.testing.assert_array_equal(result.steps, expected)
    for i, steps in enumerate(expected):
        np.testing.assert_allclose(result.losses[:steps, i], free.losses[:steps, i], atol=1e-5)
        assert np.isnan(result.losses[steps:, i]).all()
        alone = edit_latents(generator, clip, latents[i : i + 1], texts[i : i + 1], config)
        np.testing.assert_allclose(result.latents[i], alone.latents[0], atol=1e-4)


def test_stops_at_once_when_the_losses_are_low_from_the_start(generator, clip, latents, texts):
    config = dataclasses.replace(CONFIG, stop_loss=10.0)
    result = edit_latents(generator, clip, latents, texts, config)
    np.testing.assert_array_equal(result.steps, 1)


@pytest.mark.parametrize(("patience", "min_improvement"), [(2, 0.03), (4, 10.0)])
def test_an_image_whose_loss_stalls_no_longer_changes(
    generator, clip, latents, texts, patience, min_improvement
):
    config = OptimizeConfig(steps=30)
    losses = np.asarray(edit_latents(generator, clip, latents, texts, config).losses)
    expected = [1 + stalled_step(losses[:, i], patience, min_improvement) for i in range(3)]
    config = dataclasses.replace(config, patience=patience, min_improvement=min_improvement)
    result = edit_latents(generator, clip, latents, texts, config)
    np.testing.assert_array_equal(result.steps, expected)


def stalled_step(losses, patience, min_improvement):
    """The obvious loop: the first step at which an image's loss has stalled."""
    best, best_step = np.inf, 0
    for step, current in enumerate(losses):
        if current < best - min_improvement:
            best, best_step = current, step
        if step - best_step >= patience:
            return step
    return len(losses) - 1


@pytest.mark.parametrize("path", ["from the host", "in one loop"])
def test_a_loss_that_is_not_finite_names_the_step(generator, clip, latents, texts, path, request):
    if path == "in one loop":
        request.getfixturevalue("in_one_loop")
    config = dataclasses.replace(CONFIG, learning_rate=1e38)
    # The learning rate of the first step is zero.
    with pytest.raises(FloatingPointError, match="step 3 of 8; try a lower learning_rate"):
        edit_latents(generator, clip, latents, texts, config)
    damaged = np.array(texts)
    damaged[:, 0] = np.nan
    damaged = jnp.asarray(damaged)
    with pytest.raises(
        FloatingPointError, match=r"step 1 of 8; the learning rate is not the cause"
    ):
        edit_latents(generator, clip, latents, damaged, CONFIG)


@pytest.mark.parametrize("path", ["from the host", "in one loop"])
def test_an_image_whose_loss_is_not_finite_does_not_stop_the_others(
    generator, clip, latents, texts, path, request
):
    if path == "in one loop":
        request.getfixturevalue("in_one_loop")
    expected = edit_latents(generator, clip, latents, texts, CONFIG)
    assert not expected.failures()
    rates = jnp.array([0.1, 1e38, 0.1])
    config = dataclasses.replace(CONFIG, learning_rate=rates)
    result = edit_latents(generator, clip, latents, texts, config)
    (failure,) = result.failures().items()
    assert failure[0] == 1 and "step 3 of 8; try a lower learning_rate" in failure[1]
    np.testing.assert_array_equal(result.steps, [8, 3, 8])
    for i in (0, 2):
        np.testing.assert_allclose(result.latents[i], expected.latents[i], atol=1e-5)
    np.testing.assert_array_equal(result.latents[1], latents[1])
    assert np.isfinite(result.images).all()


def test_the_final_images_are_checked_too(generator, clip, latents, texts):
    config = dataclasses.replace(CONFIG, steps=2, learning_rate=1e38)
    with pytest.raises(FloatingPointError, match="image is not finite at step 2 of 2; try a lower"):
        edit_latents(generator, clip, latents, texts, config)
    some = dataclasses.replace(config, learning_rate=jnp.array([0.1, 0.1, 1e38]))
    result = edit_latents(generator, clip, latents, texts, some)
    assert list(result.failures()) == [2] and np.isfinite(result.images).all()
    np.testing.assert_array_equal(result.latents[2], latents[2])


def test_progress_is_reported_with_losses_and_latents(generator, clip, latents, texts):
    reports = []

    def report(*arguments):
        reports.append(arguments)

    result = edit_latents(
        generator, clip, latents, texts, CONFIG, on_progress=report, progress_every=3
    )
    assert [step for step, _, _ in reports] == [3, 6, 8]
    for step, current, _ in reports:
        np.testing.assert_array_equal(current, result.losses[step - 1])
    np.testing.assert_array_equal(reports[-1][2], result.latents)


def test_a_run_stops_when_the_callback_returns_true(generator, clip, latents, texts):
    whole = edit_latents(generator, clip, latents, texts, CONFIG)
    stopped = edit_latents(
        generator,
        clip,
        latents,
        texts,
        CONFIG,
        on_progress=lambda step, losses, latents: step == 3,
        progress_every=1,
    )
    np.testing.assert_array_equal(stopped.steps, [3, 3, 3])
    np.testing.assert_array_equal(stopped.losses[:3], whole.losses[:3])
    assert np.isnan(stopped.losses[3:]).all()
    np.testing.assert_allclose(
        stopped.images, jax.jit(synthesize)(generator, stopped.latents), atol=1e-5
    )


def test_progress_cannot_be_reported_from_a_compiled_function(generator, clip, latents, texts):
    @jax.jit
    def edit(latents):
        return edit_latents(
            generator, clip, latents, texts, CONFIG, on_progress=lambda *_: None
        ).latents

    with pytest.raises(InputError, match=r"on_progress cannot be called inside jax\.jit"):
        edit(latents)


def test_an_extra_loss_pulls_latents_where_it_is_lowest(generator, clip, latents, texts):
    target = latents[::-1]
    calls = []

    def distance(target, images, latents):
        calls.append(images.shape)
        return 100 * jnp.sum(jnp.square(latents - target), axis=(1, 2))

    config = OptimizeConfig(steps=60, l2_lambda=0.0, guide_resolution=4)
    pull = jax.tree_util.Partial(distance, target)
    result = edit_latents(generator, clip, latents, texts, config, extra_loss=pull)
    assert set(calls) == {(3, 4, 4, 3)}
    np.testing.assert_allclose(result.latents, target, atol=0.05)
    plain = edit_latents(generator, clip, latents, texts, dataclasses.replace(config, steps=8))
    expected = plain.losses[0] + distance(target, result.images, latents)
    np.testing.assert_allclose(result.losses[0], expected, rtol=1e-5)


def test_an_extra_loss_that_is_not_per_image_is_refused(generator, clip, latents, texts):
    with pytest.raises(
        InputError, match=r"extra_loss returns shape \(\), expected \(3,\), one loss"
    ):
        edit_latents(
            generator, clip, latents, texts, CONFIG, extra_loss=lambda images, _: images.mean()
        )


def test_the_same_functions_are_compiled_once(generator, clip, latents, texts):
    traces = []

    def brightness(weight, images, latents):
        traces.append(weight)
        return weight * images.mean(axis=(1, 2, 3))

    sgd = optax.sgd(0.1)
    first, second = (
        edit_latents(
            generator,
            clip,
            latents,
            texts,
            CONFIG,
            extra_loss=jax.tree_util.Partial(brightness, jnp.float32(weight)),
            optimizer=sgd,
        )
        for weight in (1, 2)
    )
    assert len(traces) == 1
    assert np.abs(np.subtract(first.latents, second.latents)).max() > 1e-4


@pytest.mark.parametrize("space", ["w_plus", "w", "stylespace"])
def test_an_optimizer_makes_the_steps(generator, clip, latents, texts, space):
    config = OptimizeConfig(steps=2, space=space, l2_lambda=0.5)
    start = jax.jit(Generator.styles)(generator, latents) if space == "stylespace" else latents

    def loss(latents):
        moved = jax.tree.map(lambda x, y: jnp.square(x - y).sum(), latents, start)
        fits = losses.clip_loss(clip, synthesize(generator, latents), texts)
        return fits.sum() + 0.5 * sum(jax.tree.leaves(moved))

    @jax.jit
    def step(latents):
        """Gradient descent with weight decay, which must not leave the space."""
        change = jax.tree.map(lambda x, g: -0.3 * (g + 0.1 * x), latents, jax.grad(loss)(latents))
        if space == "w":
            change = jnp.broadcast_to(change.mean(1, keepdims=True), change.shape)
        if space == "stylespace":
            change = tuple(0 * c if i % 3 == 1 else c for i, c in enumerate(change))
        return jax.tree.map(jnp.add, latents, change)

    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3))
    result = edit_latents(generator, clip, latents, texts, config, optimizer=optimizer)
    for ours, expected in zip(
        jax.tree.leaves(result.latents), jax.tree.leaves(step(step(start))), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_bfloat16_is_for_the_networks_and_not_for_latents_optimizer_and_losses(
    generator, clip, latents, texts
):
    seen = []

    def note(updates, state, params=None):
        seen.extend(x.dtype for x in jax.tree.leaves((updates, state, params)))
        return updates, state

    optimizer = optax.chain(
        optax.scale_by_adam(), optax.GradientTransformation(lambda params: optax.EmptyState(), note)
    )
    short: Any = [
        build(type(model), model.config, lambda _, m=model: flatten(m), jnp.bfloat16)
        for model in (generator, clip)
    ]
    config = dataclasses.replace(CONFIG, views=2)
    with jax.numpy_dtype_promotion("standard"):  # Flax computes layer norms in float32.
        result = edit_latents(short[0], short[1], latents, texts, config, optimizer=optimizer)
    results = (result.latents, result.images, result.losses)
    assert {*seen, *(x.dtype for x in jax.tree.leaves(results))} == {jnp.dtype("float32")}
    # The first loss does not depend on the optimizer.
    exact = edit_latents(generator, clip, latents, texts, config)
    np.testing.assert_allclose(result.losses[0], exact.losses[0], atol=0.02)


def test_an_optimizer_sees_every_image_on_its_own(generator, clip, latents, texts):
    config = OptimizeConfig(steps=3)
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(0.1))
    edit = functools.partial(edit_latents, config=config, optimizer=optimizer)
    together = edit(generator, clip, latents, texts)
    alone = edit(generator, clip, latents[1:2], texts[1:2])
    np.testing.assert_allclose(together.latents[1:2], alone.latents, atol=1e-3)


def test_one_text_for_all_images_shares_the_program_of_a_text_for_each(
    generator, clip, latents, texts
):
    traces = []

    def note(images, latents):
        traces.append(images)
        return jnp.zeros(len(images))

    edit = functools.partial(edit_latents, generator, clip, latents, extra_loss=note)
    one, each = (edit(x, CONFIG) for x in (texts[:1], jnp.repeat(texts[:1], 3, axis=0)))
    assert len(traces) == 1
    np.testing.assert_array_equal(one.latents, each.latents)


def test_texts_may_be_strings_where_there_is_a_tokenizer(generator, clip, clip_path, latents):
    tokenizer = load_tokenizer(clip_path)
    both: Any = {"tokenizer": (tokenizer, tokenizer)}
    config = dataclasses.replace(DIRECTION, steps=2, views=0)
    encode = jax.jit(CLIP.encode_text)
    given, encoded = (
        edit_latents(
            generator,
            clips,
            latents,
            features(["a hat", "a bun", "a cap"]),
            config,
            neutral_features=features("a face"),
            keep_features=features(["long hair", "a smile"]),
            **tokenizers,
        )
        for clips, tokenizers, features in (
            ((clip, clip), both, lambda texts: texts),
            (clip, {}, lambda texts: encode(clip, jnp.asarray(tokenizer(texts)))),
        )
    )
    np.testing.assert_allclose(given.latents, encoded.latents, atol=1e-4)
    with pytest.raises(InputError, match="text_features are strings, which need a tokenizer"):
        edit_latents(generator, clip, latents, "a hat", CONFIG)
    with pytest.raises(InputError, match="there are 2 tokenizers, expected 1"):
        edit_latents(generator, (clip,), latents, "a hat", tokenizer=(tokenizer, tokenizer))


def test_an_identity_loss_without_arcface_is_refused(generator, clip, latents, texts):
    config = dataclasses.replace(CONFIG, id_lambda=0.5)
    with pytest.raises(InputError, match="ArcFace"):
        edit_latents(generator, clip, latents, texts, config)


def test_the_learning_rate_schedule_is_the_official_one():
    schedule = learning_rate_schedule(0.1, 300)
    for step in (0, 3, 15, 100, 224, 225, 280, 299):
        # get_lr of the official optimization/run_optimization.py.
        t = step / 300
        ramp = 0.5 - 0.5 * math.cos(min(1, (1 - t) / 0.25) * math.pi)
        np.testing.assert_allclose(schedule(step), 0.1 * ramp * min(1, t / 0.05), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "z"}, "space is 'z', expected w_plus or w or stylespace"),
        ({"mode": "draw"}, "mode is 'draw'"),
        ({"preprocess": "none"}, "preprocess is 'none'"),
        ({"steps": 0}, "steps is 0, expected a number of at least 1"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": 1e39}, "learning_rate is 1e\\+39"),  # infinite in float32
        ({"l2_lambda": math.inf}, "l2_lambda is inf"),
        ({"stop_loss": math.nan}, "stop_loss is nan"),
        ({"l2_lambda": -1.0}, "l2_lambda"),
        ({"id_lambda": -1.0}, "id_lambda"),
        ({"patience": -1}, "patience"),
        ({"min_improvement": -1.0}, "min_improvement"),
        ({"guidance": "text"}, "guidance is 'text', expected similarity or direction"),
        ({"orthogonal_lambda": -1.0}, "orthogonal_lambda"),
        ({"keep_lambda": -1.0}, "keep_lambda"),
        ({"views": -1}, "views is -1"),
        ({"view_kinds": ("blur",)}, "view_kinds are blur, expected some of color, shift"),
        ({"view_kinds": ()}, "view_kinds are none"),
    ],
)
def test_invalid_settings_are_refused(monkeypatch, changes, message):
    # Users have no run-time type checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=message):
        OptimizeConfig(**changes)


def test_the_name_of_an_optimizer_is_refused(generator, clip, latents, texts, without_type_checks):
    name: Any = "adam"
    with pytest.raises(InputError, match="optimizer is 'adam', expected an optax transformation"):
        edit_latents(generator, clip, latents, texts, CONFIG, optimizer=name)


def test_no_latents_are_refused(generator, clip, latents, texts):
    with pytest.raises(InputError, match="no latents"):
        edit_latents(generator, clip, latents[:0], texts, CONFIG)


def test_latents_that_do_not_match_are_refused(generator, clip, latents, texts):
    with pytest.raises(InputError, match=r"\(3, 3, 16\).*\(batch, 4, 16\)"):
        edit_latents(generator, clip, latents[:, :3], texts, CONFIG)
    styles = jax.jit(Generator.styles)(generator, latents)
    with pytest.raises(InputError, match="stylespace"):
        edit_latents(generator, clip, styles, texts, CONFIG)
    config = dataclasses.replace(CONFIG, space="stylespace")
    with pytest.raises(InputError, match="4 StyleSpace arrays"):
        edit_latents(generator, clip, styles[:-1], texts, config)


def test_text_features_that_do_not_match_are_refused(generator, clip, latents, texts):
    with pytest.raises(InputError, match=r"\(2, 16\), expected \(1, 16\) or \(3, 16\)"):
        edit_latents(generator, clip, latents, texts[:2], CONFIG)


def test_missing_or_useless_features_are_refused(generator, clip, latents, texts, neutral):
    with pytest.raises(InputError, match=r"needs neutral_features; pass clip.encode_text"):
        edit_latents(generator, clip, latents, texts, DIRECTION)
    with pytest.raises(InputError, match="same"):
        edit_latents(generator, clip, latents, texts, DIRECTION, neutral_features=texts[1:2])
    with pytest.raises(InputError, match=r"keep_features have shape \(1, 5\), expected .* 16\)"):
        edit_latents(generator, clip, latents, texts, CONFIG, keep_features=jnp.ones((1, 5)))
    config = dataclasses.replace(CONFIG, mode="generate")
    with pytest.raises(InputError, match=r"keep_features .* 'generate'; remove them"):
        edit_latents(generator, clip, latents, texts, config, keep_features=neutral)


def test_a_guide_resolution_that_the_generator_lacks_is_refused(generator, clip, latents, texts):
    config = dataclasses.replace(CONFIG, guide_resolution=64)
    with pytest.raises(InputError, match="guide_resolution is 64"):
        edit_latents(generator, clip, latents, texts, config)
