import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from flax import nnx

from ckpt_convert import mapper as mapper_conversion
from ckpt_convert.formats import SourceFile
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import flatten
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.losses import image_features
from styleclip_jax.methods import delta_training
from styleclip_jax.methods.delta_training import (
    DeltaTrainConfig,
    SeenStyles,
    choose_partners,
    make_delta_evaluation,
    make_delta_train_step,
    make_pairs,
    pair_directions,
    see_styles,
)
from styleclip_jax.methods.mapper_training import init_mapper_state
from styleclip_jax.models import DeltaMapper, DeltaMapperConfig, Generator

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GOLDEN = seeded.load("delta_mapper")


def official_pairs(config):
    """The batches of the official training; ToRGB styles, which it lacks, are zero."""
    convs = iter(
        np.split(
            GOLDEN.input("styles"),
            np.cumsum([config.style_dims[i] for i in config.changed])[:-1],
            axis=-1,
        )
    )
    features = GOLDEN.input("features")
    styles = tuple(
        np.zeros((len(features), dim), np.float32) if i % 3 == 1 else next(convs)
        for i, dim in enumerate(config.style_dims)
    )
    images = SeenStyles(styles, features / np.linalg.norm(features, axis=-1, keepdims=True))
    partners = np.array(GOLDEN.settings["partners"])
    for rows in np.arange(len(partners)).reshape(-1, GOLDEN.settings["batch"]):
        yield make_pairs(images, rows, partners[rows])


def test_steps_are_the_official_ones():
    source = SourceFile("net_face.pth", "pytorch", GOLDEN.weights("mapper"), {}, {})
    mapper = mapper_conversion.convert(source).model
    config = DeltaTrainConfig(learning_rate=GOLDEN.settings["training"]["learning_rate"])
    state = init_mapper_state(mapper, config)
    step = make_delta_train_step(config)
    losses = []
    for pairs in official_pairs(mapper.config):
        state, metrics = step(state, pairs)
        losses.append([metrics["l2_loss"], metrics["cosine_loss"]])
    np.testing.assert_allclose(losses, GOLDEN["losses"], rtol=1e-4)
    before, after = flatten(mapper), flatten(state.mapper)
    for row in mapper_conversion.make_delta_table(mapper.config):
        moved = np.asarray(after[row.target]) - np.asarray(before[row.target])
        official = row.transform(GOLDEN[f"moved.{row.source}"])
        assert np.linalg.norm(moved - official) <= 1e-3 * np.linalg.norm(official)


@pytest.fixture
def images(generator, clip):
    latents = sample_latents(generator, 8, seed=3)
    return see_styles(generator, clip, latents, batch_size=8)


@pytest.fixture
def mapper(generator, clip):
    config = DeltaMapperConfig(generator.config.style_dims, clip.config.embed_dim, width=8)
    return DeltaMapper(config, rngs=nnx.Rngs(0))


def test_all_images_are_encoded_even_if_they_do_not_fill_batches(generator, clip, monkeypatch):
    devices = jax.device_count()
    latents = sample_latents(generator, 2 * devices + 1, seed=3)
    counts = []
    seen = see_styles(generator, clip, latents, 2 * devices, on_batch=counts.append)
    assert counts == [2 * devices, 1]
    # Another set of images shares the program.
    monkeypatch.delattr(delta_training, "image_features")
    see_styles(generator, clip, latents[1:], 2 * devices)
    expected = jax.jit(Generator.styles)(generator, latents)
    features = jax.jit(lambda *x: image_features(x[0], synthesize(*x[1:])))(
        clip, generator, latents
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        tuple(seen),
        (expected, features),
    )
    np.testing.assert_allclose(np.linalg.norm(seen.features, axis=-1), 1, rtol=1e-5)


def test_styles_and_their_w_plus_give_the_same_features(generator, clip):
    latents = sample_latents(generator, 8, seed=3)
    styles = jax.jit(Generator.styles)(generator, latents)
    one, other = (see_styles(generator, clip, x, 8) for x in (latents, styles))
    np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_partners_are_others_within_reach_and_differ_from_step_to_step():
    rows = np.arange(50)
    near = [choose_partners(rows, 50, 2, seed=0, step=step) for step in (1, 2)]
    for partners in near:
        distances = (partners - rows) % 50
        assert set(distances) == {1, 2, 48, 49}
    assert (near[0] != near[1]).any()
    np.testing.assert_array_equal(near[0], choose_partners(rows, 50, 2, seed=0, step=1))
    anywhere = choose_partners(rows, 50, 0, seed=0, step=1)
    assert (anywhere != rows).all() and len(set((anywhere - rows) % 50)) > 10


def test_training_learns_the_changes_and_is_deterministic(images, mapper):
    config = DeltaTrainConfig(learning_rate=0.1, direction_noise=0.1)
    rows = np.arange(8)
    pairs = make_pairs(images, rows, choose_partners(rows, 8, 0, seed=0, step=1))

    def train():
        state = init_mapper_state(mapper, config)
        step = make_delta_train_step(config, key=jax.random.key(1))
        for _ in range(40):
            state, metrics = step(state, pairs)
        return state, metrics

    state, metrics = train()
    evaluate = make_delta_evaluation(config)
    first, last = evaluate(mapper, pairs), evaluate(state.mapper, pairs)
    assert last["loss"] < 0.7 * first["loss"]
    np.testing.assert_array_equal(metrics["loss"], train()[1]["loss"])


def test_noise_changes_the_training_but_not_the_evaluation(images, mapper):
    pairs = make_pairs(images, np.arange(8), np.arange(8)[::-1])
    noisy, clean = DeltaTrainConfig(direction_noise=1.0), DeltaTrainConfig()
    losses = {
        name: make_delta_train_step(config)(init_mapper_state(mapper, config), pairs)[1]["loss"]
        for name, config in {"noisy": noisy, "clean": clean}.items()
    }
    assert losses["noisy"] != losses["clean"]
    evaluated = [make_delta_evaluation(config)(mapper, pairs) for config in (noisy, clean)]
    np.testing.assert_allclose(evaluated[0]["loss"], evaluated[1]["loss"], rtol=1e-6)
    np.testing.assert_allclose(evaluated[1]["loss"], losses["clean"], rtol=1e-5)


def test_directions_have_unit_length_and_are_zero_for_equal_images(images):
    pairs = make_pairs(images, np.arange(3), np.array([1, 0, 2]))
    lengths = jnp.linalg.norm(pair_directions(pairs), axis=-1)
    np.testing.assert_allclose(lengths, [1, 1, 0], rtol=1e-5)


@pytest.mark.parametrize("field", ["learning_rate", "l2_lambda", "direction_noise"])
def test_negative_settings_are_refused(field):
    with pytest.raises(InputError, match=f"{field} is -1"):
        dataclasses.replace(DeltaTrainConfig(), **{field: -1.0})


@pytest.mark.usefixtures("without_type_checks")
def test_an_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="expected ranger or adam"):
        DeltaTrainConfig(optimizer="sgd")  # pyright: ignore[reportArgumentType]
