import dataclasses
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import build, flatten
from styleclip_jax.methods.mapper_editing import apply_mapper, edit_with_mappers
from styleclip_jax.methods.mapper_training import (
    MapperTrainConfig,
    batch_indices,
    init_mapper_state,
    make_mapper_evaluation,
    make_mapper_train_step,
    mapper_card,
    start_along,
)
from styleclip_jax.models import Generator, GeneratorConfig, LevelsMapper, MapperCard, MapperConfig
from styleclip_jax.models.mapper import (
    FullStyleSpaceMapper,
    Mapper,
    WithoutToRGBStyleSpaceMapper,
    start_at,
)
from styleclip_jax.runs.mapper_diagnostics import (
    check_finite,
    describe_shares,
    loss_shares,
    training_warnings,
)
from styleclip_jax.sharding import host_share, shard
from tests.programs import collectives, dump_programs, read_train_steps

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ROOT = Path(__file__).parents[2]
STEPS = ROOT / "tests" / "methods" / "mapper_steps.py"
SMALL_GENERATOR = GeneratorConfig(resolution=16, w_dim=16, channel_base=256, channel_max=8)


@pytest.fixture(scope="module")
def on_two_devices(tmp_path_factory) -> tuple[dict, list[str]]:
    """Ten steps on two devices, in a process of its own; and the compiled training steps."""
    directory = tmp_path_factory.mktemp("steps")
    flags = [
        os.environ["XLA_FLAGS"],
        "--xla_force_host_platform_device_count=2",
        dump_programs(directory),
    ]
    subprocess.run(
        [sys.executable, STEPS, directory / "steps.npz"],
        env={
            **os.environ,
            "XLA_FLAGS": " ".join(flags),
            "PYTHONPATH": str(ROOT),
        },
        check=True,
        timeout=500,
    )
    with np.load(directory / "steps.npz") as archive:
        return dict(archive), read_train_steps(directory)


def test_steps_do_not_depend_on_the_number_of_devices(on_two_devices, generator, clip):
    alone = runpy.run_path(str(STEPS))["take_steps"](generator, clip)
    shared, _ = on_two_devices
    assert alone.pop("devices") == 1 and shared["devices"] == 2
    for key, update in alone.items():
        assert np.abs(shared[key] - update).max() <= 1e-5 * np.abs(update).max()


def test_devices_exchange_one_message_per_step(on_two_devices):
    results, programs = on_two_devices
    # Compiled once.
    (program,) = programs
    assert collectives(program) == ["all-reduce"]
    parameters = sum(x.size for key, x in results.items() if "layers" in key)
    # Gradients and three losses.
    assert f"f32[{parameters + 3}]" in program


def small_mapper(kind: type[Mapper] = LevelsMapper, seed=0, card: MapperCard | None = None) -> Any:
    dims = SMALL_GENERATOR.style_dims
    config = MapperConfig(w_dim=16, num_layers=6, style_dims=dims, card=card or MapperCard())
    return kind(config, rngs=nnx.Rngs(seed))


def w_plus(count, seed=0):
    values = np.random.default_rng(seed).normal(size=(count, 6, 16))
    return jnp.asarray(values, jnp.float32)


def residual_of(mapper):
    return np.asarray(jax.jit(LevelsMapper.__call__)(mapper, w_plus(2)))


def text_features(clip):
    features = np.ones((1, clip.config.embed_dim), np.float32)
    features[0, ::2] = -1
    return jnp.asarray(features)


def test_a_step_takes_its_state_but_leaves_the_first_mapper_as_it_was(generator, clip):
    config = MapperTrainConfig(optimizer="adam")
    mapper = small_mapper()
    before = {name: np.array(array) for name, array in flatten(mapper).items()}
    step = make_mapper_train_step(generator, clip, text_features(clip), config)
    evaluate: Any = make_mapper_evaluation(generator, clip, text_features(clip), config)
    state = init_mapper_state(mapper, config)
    expected = evaluate(state.mapper, w_plus(2))
    donated = jax.tree.leaves(state)
    state, metrics = step(state, w_plus(2))
    assert all(array.is_deleted() for array in donated)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    assert int(state.step) == 1
    for name, array in flatten(mapper).items():
        np.testing.assert_array_equal(array, before[name])
    images, _ = apply_mapper(generator, state.mapper, w_plus(2))
    first_images, _ = apply_mapper(generator, mapper, w_plus(2))
    assert np.abs(np.asarray(images) - np.asarray(first_images)).max() > 1e-4


def test_training_lowers_the_loss(generator, clip):
    config = MapperTrainConfig(optimizer="adam")
    step = make_mapper_train_step(generator, clip, text_features(clip), config)
    state = init_mapper_state(small_mapper(), config)
    losses = []
    for _ in range(20):
        state, metrics = step(state, w_plus(2))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.01


def test_trainings_for_several_texts_are_compiled_once(generator, clip, caplog):
    config = MapperTrainConfig(optimizer="adam")
    traces = []

    def brightness(images, latents):
        traces.append(images.shape)
        return images.mean(axis=(1, 2, 3))

    losses = []
    with jax.log_compiles():
        for text in (text_features(clip), -text_features(clip)):
            networks = generator, clip, text, config
            step = make_mapper_train_step(*networks, extra_loss=brightness)
            evaluate: Any = make_mapper_evaluation(*networks, extra_loss=brightness)
            mapper = small_mapper()
            state = init_mapper_state(start_at(mapper, jnp.ones((6, 16))), config)
            evaluate(mapper, w_plus(2))
            losses.append(
                [evaluate(state.mapper, w_plus(2))["loss"], step(state, w_plus(2))[1]["loss"]]
            )
    # One trace of the evaluation and one of the step.
    assert len(traces) == 2
    programs = [message for message in caplog.messages if message.startswith("Compiling jit(_fun)")]
    assert len(programs) == 2
    assert np.abs(np.subtract(*losses)).min() > 1e-3


@pytest.mark.parametrize("space", ["w_plus", "stylespace"])
def test_a_mapper_starts_with_the_best_step_along_the_direction(generator, clip, space):
    """The best step is 3, by construction of the loss."""
    config = MapperTrainConfig()
    architecture = generator.config
    kind = LevelsMapper if space == "w_plus" else FullStyleSpaceMapper
    shape = MapperConfig(
        w_dim=architecture.w_dim,
        num_layers=architecture.num_layers,
        style_dims=architecture.style_dims,
    )
    direction = jax.random.normal(jax.random.key(1), (architecture.w_dim,))
    latents = w_plus(2)
    goal: Any = latents + 3 * direction
    if space == "stylespace":
        latents, goal = (jax.jit(Generator.styles)(generator, x) for x in (latents, goal))

    @jax.jit
    def evaluate(mapper, latents):
        moved = jax.tree.map(lambda x, r: x + config.strength * r, latents, mapper(latents))
        errors = jax.tree.map(lambda x, y: jnp.abs(x - y).mean(), moved, goal)
        return {"loss": jnp.stack(jax.tree.leaves(errors)).sum()}

    mapper = kind(shape, rngs=nnx.Rngs(0))
    start = start_along(mapper, generator, direction, config, evaluate, [latents])
    before, after = (float(evaluate(m, latents)["loss"]) for m in (mapper, start))
    assert after < 0.2 * before


def test_an_extra_loss_is_part_of_the_loss_and_an_optimizer_makes_the_steps(generator, clip):
    rate = 0.5
    config = MapperTrainConfig(optimizer=optax.sgd(rate), clip_lambda=0.0, latent_l2_lambda=0.0)
    target = w_plus(2, seed=1)

    def distance(target, images, latents):
        assert images.shape == (2, 16, 16, 3)
        return jnp.sum(jnp.square(latents - target), axis=(1, 2))

    def expected_loss(mapper):
        return distance(
            target, jnp.zeros((2, 16, 16, 3)), w_plus(2) + 0.1 * mapper(w_plus(2))
        ).mean()

    pull = jax.tree_util.Partial(distance, target)
    mapper = small_mapper()
    step = make_mapper_train_step(generator, clip, text_features(clip), config, extra_loss=pull)
    state, metrics = step(init_mapper_state(mapper, config), w_plus(2))
    loss, gradients = jax.jit(jax.value_and_grad(expected_loss))(mapper)
    np.testing.assert_allclose(metrics["extra_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    gradients = flatten(gradients)
    for name, before in flatten(mapper).items():
        after = flatten(state.mapper)[name]
        expected = np.asarray(before) - rate * np.asarray(gradients[name])
        np.testing.assert_allclose(after, expected, atol=1e-5)


DIRECTION = MapperTrainConfig(optimizer="adam", guidance="direction", orthogonal_lambda=0.5)


def random_texts(clip, count):
    """Text features of random directions."""
    features = np.random.default_rng(0).normal(size=(count, clip.config.embed_dim))
    return jnp.asarray(features, jnp.float32)


def test_an_edit_that_changes_nothing_costs_one_by_direction_and_nothing_else(generator, clip):
    config = dataclasses.replace(DIRECTION, strength=0.0)
    texts = random_texts(clip, 4)
    references: dict[str, Any] = {"neutral_features": texts[1:2], "keep_features": texts[2:]}
    evaluate = make_mapper_evaluation(generator, clip, texts[:1], config, **references)
    metrics = evaluate(small_mapper(), w_plus(2))
    expected = {"loss": 1.0, "clip_loss": 1.0, "keep_loss": 0.0, "latent_l2": 0.0}
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)


def test_the_terms_of_a_step_are_weighted(generator, clip):
    config = dataclasses.replace(DIRECTION, clip_lambda=2.0, keep_lambda=3.0, latent_l2_lambda=5.0)
    texts = random_texts(clip, 3)
    references: dict[str, Any] = {"neutral_features": texts[1:2], "keep_features": texts[2:]}
    evaluate = make_mapper_evaluation(generator, clip, texts[:1], config, **references)
    metrics = evaluate(make_strong(small_mapper()), w_plus(2))
    terms = ((2, "clip_loss"), (3, "keep_loss"), (5, "latent_l2"))
    assert metrics["keep_loss"] > 1e-6
    expected = sum(weight * metrics[name] for weight, name in terms)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def make_strong(mapper):
    """A mapper whose edits are visible."""
    return jax.tree.map(lambda x: jnp.asarray(3 * np.asarray(x)), mapper)


def test_a_key_decides_the_views_of_every_step_and_no_evaluation_has_any(generator, clip):
    texts = random_texts(clip, 2)
    text, neutral = texts[:1], texts[1:]

    def losses(views, key):
        config = dataclasses.replace(DIRECTION, learning_rate=0.0, views=views)
        arguments = (generator, clip, text, config)
        step = make_mapper_train_step(*arguments, neutral_features=neutral, key=jax.random.key(key))
        state = init_mapper_state(small_mapper(), config)
        values = []
        for _ in range(2):
            state, metrics = step(state, w_plus(2))
            values.append(float(metrics["loss"]))
        evaluate: Any = make_mapper_evaluation(*arguments, neutral_features=neutral)
        return values, float(evaluate(state.mapper, w_plus(2))["loss"])

    (first, evaluation), (same, _), (other, _) = losses(2, 0), losses(2, 0), losses(2, 1)
    assert first == same and first != other and first[0] != first[1]
    plain, plain_evaluation = losses(0, 0)
    assert plain[0] == plain[1] == pytest.approx(plain_evaluation, abs=1e-5)
    assert evaluation == pytest.approx(plain_evaluation, abs=1e-5)


def test_guidance_by_direction_without_a_neutral_text_is_refused(generator, clip):
    with pytest.raises(InputError, match="needs neutral_features"):
        make_mapper_train_step(generator, clip, text_features(clip), DIRECTION)


def test_a_step_in_bfloat16_keeps_parameters_and_losses_in_float32(generator, clip):
    config = MapperTrainConfig(optimizer="adam")
    results = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        networks: list[Any] = [
            build(type(model), model.config, lambda _, m=model: flatten(m), dtype)
            for model in (generator, clip)
        ]
        step = make_mapper_train_step(networks[0], networks[1], text_features(clip), config)
        with jax.numpy_dtype_promotion("standard"):  # Flax computes layer norms in float32.
            results[dtype] = step(init_mapper_state(small_mapper(), config), w_plus(2))
    state, metrics = results[jnp.bfloat16]
    assert {x.dtype for x in jax.tree.leaves((state.mapper, metrics))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], results[jnp.float32][1]["loss"], atol=0.02)


def test_a_mapper_is_applied_with_any_strength_without_compiling_again(generator):
    mapper = small_mapper()
    residual, generate = residual_of(mapper), jax.jit(Generator.__call__)
    program: Any = edit_with_mappers
    before = program._cache_size()
    for strength in (-0.2, 0.0, 0.1):
        images, edited = apply_mapper(generator, mapper, w_plus(2), strength)
        expected = np.asarray(w_plus(2)) + strength * residual
        np.testing.assert_allclose(edited, expected, atol=1e-5)
        np.testing.assert_allclose(images, generate(generator, expected), atol=1e-3)
    assert program._cache_size() <= before + 1


def test_a_mapper_is_applied_with_the_strength_on_its_card(generator):
    weak, strong = (small_mapper(card=MapperCard(strength=s)) for s in (0.1, 0.4))
    program: Any = edit_with_mappers
    before = program._cache_size()
    residual = residual_of(weak)
    for mapper, strength in ((weak, 0.1), (strong, 0.4)):
        _, edited = apply_mapper(generator, mapper, w_plus(2))
        expected = np.asarray(w_plus(2)) + strength * residual
        np.testing.assert_allclose(edited, expected, atol=1e-5)
    assert program._cache_size() <= before + 1
    _, edited = apply_mapper(generator, [weak, strong], w_plus(2))
    np.testing.assert_allclose(edited, np.asarray(w_plus(2)) + 0.5 * residual, atol=1e-5)


def test_a_mapper_of_another_generator_gives_a_warning(generator):
    own = mapper_card("a hat", MapperTrainConfig(optimizer=optax.sgd(0.1)), generator).settings
    assert own["optimizer"] == "optax" and "learning_rate" not in own
    card = mapper_card("a hat", MapperTrainConfig(), generator)
    mapper = small_mapper(card=card)
    apply_mapper(generator, mapper, w_plus(2))
    other = jax.tree.map(lambda x: jnp.asarray(2 * np.asarray(x)), generator)
    with pytest.warns(match="the mapper of 'a hat' was trained with another generator"):
        apply_mapper(other, mapper, w_plus(2))
    # No warning if the generator is unknown.
    jax.jit(apply_mapper)(other, mapper, w_plus(2))


def test_residuals_of_several_mappers_are_added(generator):
    one, other = small_mapper(seed=1), small_mapper(seed=2)
    _, edited = apply_mapper(generator, [one, other], w_plus(2), 0.5)
    expected = np.asarray(w_plus(2)) + 0.5 * (residual_of(one) + residual_of(other))
    np.testing.assert_allclose(edited, expected, atol=1e-5)


def test_a_stylespace_mapper_edits_w_plus_latents_in_stylespace(generator):
    mapper = small_mapper(WithoutToRGBStyleSpaceMapper)
    images, edited = apply_mapper(generator, mapper, w_plus(2))
    styles = jax.jit(Generator.styles)(generator, w_plus(2))
    for i, (before, after) in enumerate(zip(styles, edited, strict=True)):
        assert (np.abs(np.asarray(after) - np.asarray(before)).max() < 1e-6) == (i % 3 == 1)
    # Models also work without `jit`; other tests compile them, which is faster.
    np.testing.assert_allclose(images, generator.synthesize(edited), atol=1e-3)


def test_mappers_and_latents_of_different_spaces_are_refused(generator):
    one, other = small_mapper(), small_mapper(WithoutToRGBStyleSpaceMapper)
    with pytest.raises(InputError, match="cannot be added"):
        apply_mapper(generator, [one, other], w_plus(2))
    with pytest.raises(InputError, match="in stylespace, expected w_plus"):
        apply_mapper(generator, one, jax.jit(Generator.styles)(generator, w_plus(2)))


def test_two_texts_are_refused(generator, clip):
    two: Any = jnp.ones((2, clip.config.embed_dim))
    with pytest.raises(InputError, match=r"\(2, 16\), expected \(1, 16\)"):
        make_mapper_train_step(generator, clip, two, MapperTrainConfig())


def test_a_batch_that_is_not_divisible_by_the_devices_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    with pytest.raises(InputError, match=r"batch of 6 is not divisible by 4 devices; .* of 8"):
        host_share(np.arange(6))
    with pytest.raises(InputError, match="batch of 6 latents is not divisible by 4"):
        shard(w_plus(6))


def test_an_epoch_uses_every_latent_once_in_its_own_order():
    epochs = [
        [i for step in range(4 * n, 4 * n + 4) for i in batch_indices(3, step, 9, 2)]
        for n in range(3)
    ]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    np.testing.assert_array_equal(batch_indices(3, 5, 9, 2), batch_indices(3, 5, 9, 2))
    assert batch_indices(4, 0, 1000, 10).tolist() != batch_indices(3, 0, 1000, 10).tolist()


def test_hosts_share_a_batch(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    np.testing.assert_array_equal(host_share(np.array([7, 5, 3, 1])), [3, 1])


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "parameter_norm"])
def test_a_step_that_is_not_finite_is_reported_with_its_number(name):
    metrics = dict.fromkeys(["loss", "gradient_norm", "parameter_norm"], 1.0)
    check_finite(7, metrics)
    with pytest.raises(FloatingPointError, match="is nan at step 7"):
        check_finite(7, metrics | {name: math.nan})


def test_shares_of_the_loss_follow_the_weights():
    config = MapperTrainConfig(clip_lambda=1.0, id_lambda=0.5, latent_l2_lambda=2.0)
    metrics = {"loss": 1.0, "clip_loss": 0.6, "id_loss": 0.4, "latent_l2": 0.1}
    shares = loss_shares(metrics, config)
    assert shares == pytest.approx({"clip_loss": 0.6, "id_loss": 0.2, "latent_l2": 0.2})
    terms = ["60.0% CLIP (1 x 0.6)", "20.0% identity (0.5 x 0.4)", "20.0% latent L2 (2 x 0.1)"]
    assert describe_shares(metrics, config) == f"loss 1.0000: {', '.join(terms)}"


def test_shares_name_texts_to_keep_and_losses_below_zero():
    config = MapperTrainConfig(keep_lambda=100.0, latent_l2_lambda=1.0)
    metrics = {"loss": -0.1, "clip_loss": -0.3, "keep_loss": 0.001, "latent_l2": 0.1}
    assert describe_shares(metrics, config) == (
        "loss -0.1000: -60.0% CLIP (1 x -0.3), 20.0% kept texts (100 x 0.001),"
        " 20.0% latent L2 (1 x 0.1)"
    )


def test_a_training_without_effect_gives_named_warnings():
    first = {"clip_loss": 0.8, "latent_l2": 0.01}
    latents = np.random.default_rng(0).normal(size=(200, 3, 4))
    assert training_warnings(first, {"clip_loss": 0.7, "latent_l2": 0.01}, latents) == []
    (flat,) = training_warnings(first, {"clip_loss": 0.799, "latent_l2": 0.01}, latents)
    assert flat.startswith("clip-loss-flat:")
    (still,) = training_warnings(first, {"clip_loss": 0.7, "latent_l2": 6e-5}, latents)
    assert still.startswith("residual-near-zero:") and "0.0077" in still
    # In StyleSpace, the distance is a sum over entries.
    styles = (latents[:, 0],) * 4
    assert training_warnings(first, {"clip_loss": 0.7, "latent_l2": 4 * 2e-4}, styles) == []
    assert training_warnings(first, {"clip_loss": 0.7, "latent_l2": 4 * 6e-5}, styles) == [still]
