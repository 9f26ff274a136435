import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.methods.delta_editing import best_delta_strengths
from styleclip_jax.methods.directions import best_strengths
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.optimization import OptimizeConfig, edit_latents
from styleclip_jax.methods.relevance import build_directions
from styleclip_jax.models import (
    DeltaMapper,
    DeltaMapperConfig,
    DirectionsConfig,
    LevelsMapper,
    MapperConfig,
)
from styleclip_jax.models.directions import channel_widths

pytestmark = pytest.mark.usefixtures("strict_dtypes")

BATCH = PartitionSpec("data")


@pytest.fixture
def place():
    """Puts arrays on JAX's default mesh, whose axes are explicit."""
    mesh = jax.make_mesh((1,), ("data",))

    def place(tree, spec=BATCH):
        return jax.device_put(tree, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        yield place


def test_synthesis_keeps_a_batch_on_the_devices_of_an_explicit_mesh(generator, place):
    latents = sample_latents(generator, 2, seed=0)
    images = jax.jit(synthesize)(place(generator, PartitionSpec()), place(latents))
    assert images.sharding.spec[0] == "data"
    np.testing.assert_allclose(images, jax.jit(synthesize)(generator, latents), atol=1e-5)


def test_a_mapper_edits_on_an_explicit_mesh(generator, place):
    mapper = LevelsMapper(MapperConfig(w_dim=16, num_layers=6), rngs=nnx.Rngs(0))
    latents = sample_latents(generator, 2, seed=0)
    generator, mapper = place((generator, mapper), PartitionSpec())
    for array in apply_mapper(generator, mapper, place(latents)):
        assert jax.typeof(array).sharding.spec[0] == "data"


def test_latents_are_optimized_on_an_explicit_mesh(generator, clip, place):
    latents = place(sample_latents(generator, 2, seed=0))
    text, neutral = place(np.eye(2, 16, dtype=np.float32), PartitionSpec())[:, None]
    generator, clip = place((generator, clip), PartitionSpec())
    config = OptimizeConfig(steps=2, guidance="direction", views=2)
    result = edit_latents(generator, clip, latents, text, config, neutral_features=neutral)
    for array, axis in ((result.latents, 0), (result.images, 0), (result.losses, 1)):
        assert jax.typeof(array).sharding.spec[axis] == "data"


def test_automatic_strengths_are_chosen_on_an_explicit_mesh(generator, clip, place):
    latents = sample_latents(generator, 2, seed=0)
    sizes = DeltaMapperConfig(generator.config.style_dims, clip.config.embed_dim, width=8)
    mapper = DeltaMapper(sizes, rngs=nnx.Rngs(0))
    widths = channel_widths(generator.config, "stylespace")
    relevance = np.eye(sum(widths), 16, dtype=np.float32)
    directions = build_directions(
        DirectionsConfig(widths, 16), relevance, np.ones(sum(widths), np.float32)
    )
    dt = np.full(16, 0.25, np.float32)
    generator, clip, mapper, directions, dt = place(
        (generator, clip, mapper, directions, dt), PartitionSpec()
    )
    chosen = best_delta_strengths(generator, mapper, clip, place(latents), dt)
    along = best_strengths(generator, directions, clip, place(latents), dt, 0.1)
    for strengths in (chosen, along):
        assert jax.typeof(strengths).sharding.spec[0] == "data"
