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
from styleclip_jax.models import DeltaMapper, DeltaMapperConfig, GeneratorConfig

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GOLDEN = seeded.load("delta_mapper")
# The entries of a 16 px generator: two groups, of which the second has layers of two widths.
SMALL = DeltaMapperConfig(style_dims=(4, 4, 4, 4, 4, 4, 2, 2), embed_dim=3)


residuals_of = jax.jit(DeltaMapper.__call__)


def official_mapper():
    source = SourceFile("net_face.pth", "pytorch", GOLDEN.weights("mapper"), {}, {})
    return mapper_conversion.convert(source).model


def split_styles(concatenated, config):
    """StyleSpace of what the official code concatenates; ToRGB entries, which it lacks, are 1."""
    convs = iter(
        np.split(
            concatenated, np.cumsum([config.style_dims[i] for i in config.changed])[:-1], axis=-1
        )
    )
    return tuple(
        np.ones((len(concatenated), dim), np.float32) if i % 3 == 1 else next(convs)
        for i, dim in enumerate(config.style_dims)
    )


def test_residuals_are_the_official_ones():
    mapper = official_mapper()
    assert mapper.config.style_dims == GeneratorConfig(**GOLDEN.settings["generator"]).style_dims
    rows = GOLDEN.settings["batch"]
    styles = split_styles(GOLDEN.input("styles")[:rows], mapper.config)
    features = GOLDEN.input("features")
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    direction = features[GOLDEN.settings["partners"]] - features
    direction /= np.maximum(np.linalg.norm(direction, axis=-1, keepdims=True), 1e-5)
    features, direction = features[:rows], direction[:rows]
    residuals = jax.tree.map(np.asarray, residuals_of(mapper, styles, features, direction))
    ours = np.concatenate([r for i, r in enumerate(residuals) if i % 3 != 1], axis=-1)
    assert np.abs(ours - GOLDEN["residual"]).max() <= 1e-4 * np.abs(GOLDEN["residual"]).max()
    assert not any(residuals[i].any() for i in range(1, len(residuals), 3))


def test_a_group_without_layers_has_no_parameters(random_model):
    mapper = random_model(DeltaMapper, SMALL, seed=0)
    assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(mapper))} == {"coarse", "medium"}
    styles = tuple(jnp.ones((2, dim)) for dim in SMALL.style_dims)
    residuals = jax.tree.map(
        np.asarray, residuals_of(mapper, styles, jnp.ones((2, 3)), jnp.ones((2, 3)))
    )
    assert [r.shape for r in residuals] == [style.shape for style in styles]
    assert all(residuals[i].any() for i in (0, 2, 3, 5, 6))


def test_to_rgb_styles_are_changed_where_the_configuration_says_so(random_model):
    config = dataclasses.replace(SMALL, rgb=True)
    mapper = random_model(DeltaMapper, config, seed=0)
    styles = tuple(jnp.ones((2, dim)) for dim in config.style_dims)
    residuals = jax.tree.map(
        np.asarray, residuals_of(mapper, styles, jnp.ones((2, 3)), jnp.ones((2, 3)))
    )
    assert [r.shape for r in residuals] == [style.shape for style in styles]
    assert all(residual.any() for residual in residuals)


def test_the_width_of_hidden_layers_may_be_chosen(random_model):
    config = DeltaMapperConfig((4,) * 3, embed_dim=3, width=5)
    mapper = random_model(DeltaMapper, config, seed=0)
    shapes = {
        name: [layer.kernel.shape for layer in getattr(mapper.coarse, name).layers]
        for name in ("style", "condition", "fusion")
    }
    assert shapes["style"] == [(4, 5), (5, 5), (5, 5), (5, 5)]
    assert shapes["condition"] == [(6, 5), (5, 5), (5, 5), (5, 5)]
    assert shapes["fusion"] == [(10, 5), (5, 5), (5, 5), (5, 4)]


@pytest.mark.usefixtures("without_type_checks")
def test_styles_and_features_of_other_networks_are_refused(random_model):
    mapper = random_model(DeltaMapper, SMALL, seed=0)
    styles = tuple(jnp.ones((2, dim)) for dim in SMALL.style_dims)
    with pytest.raises(InputError, match="for this map"):
        mapper(styles[:-1], jnp.ones((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(InputError, match=r"direction has shape \(2, 4\).*\(2, 3\)"):
        mapper(styles, jnp.ones((2, 3)), jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"style_dims": ()}, "style_dims .* at least 1 each"),
        ({"style_dims": (1,) * 1000}, "at most 64 each"),
        ({"embed_dim": 0}, "embed_dim is 0"),
        ({"width": 0}, "width is 0"),
        ({"depth": 10**9}, "at most 64 each"),
        ({"lr_multiplier": float("nan")}, "lr_multiplier"),
    ],
)
def test_an_impossible_architecture_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DeltaMapperConfig(**{"style_dims": (4, 4, 4)} | wrong)
