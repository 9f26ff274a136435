"""Pivotal tuning (PTI, Roich et al., arXiv 2106.05744): tunes a generator for an image.

The latents of an inversion stay fixed; the generator's weights are trained until it synthesizes the
image from them. Edits of these latents then preserve details that latents do not describe.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.losses import Perceptual, perceptual_distance, perceptual_features
from styleclip_jax.methods.objective import as_number
from styleclip_jax.models.stylegan2 import Generator, trainable_convolve

# The mapping network is no longer used.
_TRAINABLE = nnx.All(nnx.PathContains("synthesis"), nnx.Param)


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """Settings of :func:`tune_generator`; the defaults are the official ones.

    Attributes:
        steps: Maximum number of steps.
        learning_rate: Learning rate of Adam.
        pixel_lambda: Weight of the mean squared error of pixels.
        perceptual_lambda: Weight of the perceptual distance.
        stop_distance: Stop when the mean perceptual distance of the images is at most this.
    """

    steps: int = 350
    learning_rate: float = 3e-4
    pixel_lambda: float = 1.0
    perceptual_lambda: float = 1.0
    stop_distance: float = 0.06

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            least = 1 if field.name == "steps" else 0
            if not least <= number < float("inf"):
                raise InputError(f"{field.name} is {number}, expected a number of at least {least}")


class TuneResult(NamedTuple):
    """The result of :func:`tune_generator`.

    Attributes:
        generator: A new generator; the given one is not modified.
        distances: (steps, count), the perceptual distances before every step.
    """

    generator: Generator
    distances: Float[np.ndarray, "steps count"]


def tune_generator(
    generator: Generator,
    latents: Float[Array, "count layers w_dim"],
    images: Float[Array, "count resolution resolution 3"],
    perceptual: Perceptual,
    config: TuneConfig = TuneConfig(),
    *,
    on_progress: Callable[[int], object] | None = None,
) -> TuneResult:
    """Tunes a generator's synthesis network for an image, or for several at once.

    A generator tuned for one image reproduces it best.

    Args:
        generator: The generator; it is not modified.
        latents: The images' W+ latents, from :func:`styleclip_jax.invert`.
        images: In [-1, 1].
        perceptual: An LPIPS or a CLIP.
        config: The settings.
        on_progress: Called after every step with the number of steps taken.

    Raises:
        InputError: Latents or images do not fit the generator.
        FloatingPointError: A loss is not finite.
    """
    generator.config.check_w_plus(latents.shape)
    resolution = generator.config.resolution
    if images.shape != (len(latents), resolution, resolution, 3):
        raise InputError(
            f"images have shape {images.shape}, expected"
            f" ({len(latents)}, {resolution}, {resolution}, 3)"
        )
    # A copy, because the steps donate it.
    tuned = jax.device_put(generator, may_alias=False)
    state = _first_state(nnx.state(tuned, _TRAINABLE))
    numbers = {
        name: as_number(getattr(config, name))
        for name in ("learning_rate", "pixel_lambda", "perceptual_lambda")
    }
    distances = []
    for step in range(config.steps):
        tuned, state, found = tune_step(tuned, state, latents, images, perceptual, numbers)
        distances.append(np.asarray(found))
        if not np.isfinite(found).all():
            raise FloatingPointError(
                f"the distance is not finite at step {step + 1}; use a lower learning_rate"
            )
        if on_progress:
            on_progress(step + 1)
        if np.mean(found) <= config.stop_distance:
            break
    return TuneResult(tuned, np.stack(distances))


# The state depends on the parameters' shapes only, but has to be on their devices, where a step
# leaves it; elsewhere, the second step would be compiled again.
@functools.partial(jax.jit, keep_unused=True)
def _first_state(trainable: Any) -> Any:
    # The learning rate is no part of the state.
    return optax.adam(0.0).init(trainable)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def tune_step(generator, state, latents, images, perceptual, numbers: dict[str, Array]):
    """One update; returns the generator, the optimizer's state and the distances before it.

    ``numbers`` are those of the configuration that the update depends on, so that runs with other
    settings share the program.
    """
    graph, trainable, rest = nnx.split(generator, _TRAINABLE, ...)
    wanted = perceptual_features(perceptual, images)

    def loss_fn(trainable):
        network = nnx.merge(graph, trainable, rest)
        for layer in network.synthesis.convs:
            layer.convolve = trainable_convolve
        found = network(latents)
        distances = perceptual_distance(perceptual, perceptual_features(perceptual, found), wanted)
        loss = numbers["pixel_lambda"] * jnp.square(found - images).mean()
        return loss + numbers["perceptual_lambda"] * distances.mean(), distances

    gradients, distances = jax.grad(loss_fn, has_aux=True)(trainable)
    updates, state = optax.adam(numbers["learning_rate"]).update(gradients, state, trainable)
    return nnx.merge(graph, optax.apply_updates(trainable, updates), rest), state, distances
