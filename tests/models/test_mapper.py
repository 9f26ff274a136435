from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
from flax import nnx

from ckpt_convert import mapper as mapper_conversion
from ckpt_convert.formats import SourceFile
from styleclip_jax.errors import InputError
from styleclip_jax.models.mapper import MAPPER_TYPES, LevelsMapper, MapperConfig, start_at

pytestmark = pytest.mark.usefixtures("strict_dtypes")
GOLDEN = seeded.load("mapper")
STYLE_DIMS = tuple(GOLDEN.settings["style_dimensions"])
SMALL = MapperConfig(w_dim=4, num_layers=10, style_dims=(4, 4, 4, 2, 2))


def official_mapper(name, layers=18):
    """Our mapper with the weights that the official one had."""
    weights = {f"state_dict.mapper.{key}": array for key, array in GOLDEN.weights(name).items()}
    options = {"opts.stylegan_size": 2 ** (layers // 2 + 1)}
    return mapper_conversion.convert(SourceFile(name, "pytorch", weights, options, {})).model


def assert_close(ours, official):
    assert np.abs(np.asarray(ours) - official).max() <= 1e-4 * np.abs(official).max()


@pytest.mark.parametrize("name", sorted(GOLDEN.settings["latent_mappers"]))
def test_residuals_of_w_plus_are_the_official_ones(name):
    kind, layers, left_out = GOLDEN.settings["latent_mappers"][name]
    mapper = official_mapper(name, layers)
    assert type(mapper).__name__ == kind
    residual = jax.jit(type(mapper).__call__)(mapper, jnp.asarray(GOLDEN.input(f"w_plus.{layers}")))
    assert_close(np.asarray(residual)[..., ::4], GOLDEN[name])
    assert [level for level in ("coarse", "medium", "fine") if level in left_out] == [
        level for level in left_out if getattr(mapper, level) is None
    ]


@pytest.mark.parametrize("name", sorted(GOLDEN.settings["style_mappers"]))
def test_residuals_of_stylespace_are_the_official_ones(name):
    mapper = official_mapper(name)
    assert type(mapper).__name__ == GOLDEN.settings["style_mappers"][name]
    styles = tuple(jnp.asarray(GOLDEN.input(f"style_{i}")) for i in range(len(STYLE_DIMS)))
    residuals = jax.jit(type(mapper).__call__)(mapper, styles)
    for i, residual in enumerate(residuals):
        official = GOLDEN[f"{name}.residual_{i}"]
        assert residual.shape == official.shape
        if official.any():
            assert_close(residual, official)
        else:
            assert not np.any(residual)


@pytest.mark.parametrize("kind", sorted(MAPPER_TYPES))
def test_a_mapper_starts_at_the_residual_that_it_is_given(kind):
    mapper = MAPPER_TYPES[kind](SMALL, rngs=nnx.Rngs(0))
    in_w_plus = mapper.space == "w_plus"
    shapes = [(10, 4)] if in_w_plus else [(n,) for n in SMALL.style_dims]
    # Large, so that random weights add little.
    rng = np.random.default_rng(0)
    entries = [1e3 * rng.normal(size=s).astype(np.float32) for s in shapes]
    residual: Any = np.broadcast_to(entries[0][0], (10, 4)) if in_w_plus else tuple(entries)
    latents: Any = (
        jnp.ones((2, 10, 4)) if in_w_plus else tuple(jnp.ones((2, n)) for n in SMALL.style_dims)
    )
    residuals = jax.jit(type(mapper).__call__)
    started, untouched = (
        [np.asarray(leaf) for leaf in jax.tree.leaves(residuals(m, latents))]
        for m in (start_at(mapper, residual), mapper)
    )
    for new, old, expected in zip(started, untouched, jax.tree.leaves(residual), strict=True):
        if old.any():
            np.testing.assert_allclose(new, np.broadcast_to(expected, new.shape), atol=20)
        else:
            assert not new.any()


def test_disabled_groups_have_no_parameters_and_no_residual(random_model):
    config = MapperConfig(w_dim=4, num_layers=10, coarse=False, fine=False)
    mapper = random_model(LevelsMapper, config, seed=0)
    assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(mapper))} == {"medium"}
    residual = np.asarray(jax.jit(LevelsMapper.__call__)(mapper, jnp.ones((1, 10, 4))))
    assert not residual[:, :4].any() and not residual[:, 8:].any() and residual[:, 4:8].any()


def test_a_generator_without_fine_layers_has_no_fine_network(random_model):
    mapper = random_model(LevelsMapper, MapperConfig(w_dim=4, num_layers=8), seed=0)
    assert mapper.fine is None
    assert mapper(jnp.ones((2, 8, 4))).shape == (2, 8, 4)


def test_a_mapper_without_groups_is_refused():
    config = MapperConfig(num_layers=8, coarse=False, medium=False)
    with pytest.raises(InputError, match="no coarse, medium or fine group"):
        LevelsMapper(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", sorted(MAPPER_TYPES))
def test_latents_of_another_generator_are_refused(random_model, name):
    mapper = random_model(MAPPER_TYPES[name], SMALL, seed=0)
    w_plus, styles = jnp.ones((1, 18, 4)), (jnp.ones((1, 4)), jnp.ones((1, 4)))
    wrong: Any = w_plus if mapper.space == "w_plus" else styles
    with pytest.raises(InputError, match="use the generator that it was trained with"):
        mapper(wrong)


@pytest.mark.parametrize(
    "wrong", [{"w_dim": 0}, {"num_layers": 0}, {"depth": 0}, {"style_dims": (4, 0)}]
)
def test_a_size_of_zero_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .* at least 1"):
        MapperConfig(**wrong)


@pytest.mark.parametrize("multiplier", [0.0, float("inf"), float("nan")])
def test_a_learning_rate_multiplier_that_is_not_positive_is_refused(multiplier):
    with pytest.raises(ValueError, match="lr_multiplier"):
        MapperConfig(lr_multiplier=multiplier)


@pytest.mark.parametrize("wrong", [{"depth": 10**9}, {"style_dims": (1,) * 1000}])
def test_a_depth_that_no_memory_holds_is_refused(wrong):
    with pytest.raises(ValueError, match="at most 64 each"):
        MapperConfig(**wrong)
