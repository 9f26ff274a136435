"""Takes ten training steps on all devices; a script that tests run.

PYTHONPATH=. python tests/methods/mapper_steps.py OUTPUT
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from styleclip_jax.io.checkpoints import build, flatten
from styleclip_jax.methods.mapper_training import (
    MapperTrainConfig,
    batch_indices,
    init_mapper_state,
    make_mapper_train_step,
)
from styleclip_jax.models import CLIP, Generator, LevelsMapper, MapperConfig

CONFIG = MapperTrainConfig(optimizer="ranger", learning_rate=1e3, guidance="direction", views=2)
BATCH_SIZE = 8
STEPS = 10


def make_mapper(config: MapperConfig) -> LevelsMapper:
    """A mapper of random weights."""
    rng = np.random.default_rng(4)

    def fill(abstract):
        return {name: 100 * rng.normal(size=x.shape) for name, x in abstract.items()}

    return build(LevelsMapper, config, fill)


def take_steps(generator: Any, clip: Any) -> dict[str, Any]:
    """Returns the changes of the mapper, the losses and the number of devices."""
    sizes = generator.config
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(32, sizes.num_layers, sizes.w_dim)).astype(np.float32)
    text_features = jnp.asarray(rng.normal(size=(1, clip.config.embed_dim)), jnp.float32)
    mapper = make_mapper(MapperConfig(w_dim=sizes.w_dim, num_layers=sizes.num_layers))
    step = make_mapper_train_step(
        generator, clip, text_features, CONFIG, neutral_features=text_features[:, ::-1]
    )
    state = init_mapper_state(mapper, CONFIG)
    losses = []
    for i in range(STEPS):
        batch = latents[batch_indices(0, i, len(latents), BATCH_SIZE)]
        # Everything but the batch is already on all devices.
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    start, end = flatten(mapper), flatten(state.mapper)
    changes = {name: np.asarray(end[name]) - np.asarray(start[name]) for name in start}
    return changes | {"losses": np.array(losses), "devices": jax.device_count()}


def main(output: str) -> None:
    """Trains, and writes mapper and losses."""
    # Not on import, because it configures JAX.
    from tests.fixtures import CLIP_CONFIG, GENERATOR, make_random_model

    generator = make_random_model(Generator, GENERATOR, seed=1)
    np.savez(output, **take_steps(generator, make_random_model(CLIP, CLIP_CONFIG, seed=2)))


if __name__ == "__main__":
    main(*sys.argv[1:])
