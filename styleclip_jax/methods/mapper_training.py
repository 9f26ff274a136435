"""Training a latent mapper on every device of every host, and applying it.

Patashnik et al., arXiv 2103.17249, section 5; the official file is ``mapper/training/coach.py``.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from styleclip_jax.errors import InputError
from styleclip_jax.latents import Latents, draw
from styleclip_jax.losses import Preprocess, clip_loss, id_loss
from styleclip_jax.methods.mapper_editing import check_space
from styleclip_jax.methods.ranger import ranger
from styleclip_jax.models.arcface import ArcFace
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.mapper import Mapper
from styleclip_jax.models.stylegan2 import Generator
from styleclip_jax.sharding import DEVICES, replicate, shard

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class MapperTrainConfig:
    """Settings of the training; the defaults are the official ones.

    Attributes:
        optimizer: ``"ranger"`` or ``"adam"``.
        learning_rate: Its step size.
        clip_lambda: Weight of the CLIP loss.
        id_lambda: Weight of the identity loss; counts only where an ArcFace is given.
        latent_l2_lambda: Weight of the mean squared change of the latents.
        strength: Factor of the mapper's output, ``w + strength * mapper(w)``.
        preprocess: What CLIP sees; see :func:`styleclip_jax.losses.clip_pixels`.
    """

    optimizer: Literal["ranger", "adam"] = "ranger"
    learning_rate: float = 0.5
    clip_lambda: float = 1.0
    id_lambda: float = 0.1
    latent_l2_lambda: float = 0.8
    strength: float = 0.1
    preprocess: Preprocess = "styleclip"

    def __post_init__(self) -> None:
        for field, allowed in {
            "optimizer": ("ranger", "adam"),
            "preprocess": ("styleclip", "clip"),
        }.items():
            if getattr(self, field) not in allowed:
                raise InputError(
                    f"{field} is {getattr(self, field)!r}, expected {' or '.join(allowed)}"
                )
        for field in ("learning_rate", "clip_lambda", "id_lambda", "latent_l2_lambda"):
            if not getattr(self, field) >= 0:
                raise InputError(f"{field} is {getattr(self, field)}, expected at least 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MapperState:
    """What a training step changes; the same on every device.

    Attributes:
        mapper: The mapper being trained.
        optimizer: Moving averages and, for Ranger, the slow weights.
        step: Number of steps taken.
    """

    mapper: Mapper
    optimizer: optax.OptState
    step: Int[Array, ""]


class _Judges(NamedTuple):
    """What stays the same over all steps."""

    generator: Generator
    clip: CLIP
    arcface: ArcFace | None
    text_features: Float[Array, "1 embed"]


def init_mapper_state(mapper: Mapper, config: MapperTrainConfig) -> MapperState:
    """The state before the first step, on all local devices.

    Args:
        mapper: Where the training starts; it is copied, because a step takes its state apart.
        config: The settings.
    """
    parameters: Any = jax.tree.map(lambda x: jnp.array(x, jnp.float32), mapper)
    state = MapperState(parameters, _optimizer(config).init(parameters), jnp.zeros((), jnp.int32))
    return replicate(state)


def make_mapper_train_step(
    generator: Generator,
    clip: CLIP,
    text_features: Float[Array, "texts embed"],
    config: MapperTrainConfig,
    arcface: ArcFace | None = None,
) -> Callable[[MapperState, Any], tuple[MapperState, Metrics]]:
    """A training step that is ``jax.pmap``ped over all devices of all hosts.

    The networks are copied to the devices here, once. A step splits the batch over the devices and
    has a single all-reduce, of the mapper's gradients and the metrics together.

    Args:
        generator: Draws the images.
        clip: Judges them.
        text_features: ``clip.encode_text`` of the text, (1, E).
        config: The settings.
        arcface: Judges whether they show the same person; None: no identity loss.

    Returns:
        ``step(state, latents) -> (state, metrics)``. ``latents`` is this host's share of the global
        batch, on host or device, W+ or StyleSpace as the mapper needs. ``state`` is donated, so it
        is gone afterwards. ``metrics`` are means over the global batch: ``loss`` and, unweighted,
        ``clip_loss``, ``id_loss`` and ``latent_l2``; ``gradient_norm`` and ``parameter_norm`` come
        with them. The step raises InputError where the batch does not divide by the devices or does
        not fit the mapper.
    """
    judges = replicate(_judges(generator, clip, text_features, config, arcface))
    optimizer = _optimizer(config)

    @functools.partial(
        jax.pmap, axis_name=DEVICES, in_axes=(None, None, 0), out_axes=None, donate_argnums=0
    )
    def pmapped_step(state: MapperState, judges: _Judges, latents: Latents):
        parameters: Any = state.mapper
        gradients, metrics = jax.grad(_loss, has_aux=True)(parameters, judges, latents, config)
        # As one vector, so that the devices exchange one message.
        vector, unravel = ravel_pytree((gradients, metrics))
        gradients, metrics = unravel(jax.lax.pmean(vector, DEVICES))
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, parameters)
        parameters = optax.apply_updates(parameters, updates)
        metrics["parameter_norm"] = optax.tree.norm(parameters)
        return MapperState(parameters, optimizer_state, state.step + 1), metrics

    return lambda state, latents: pmapped_step(state, judges, shard(latents))


def make_mapper_evaluation(
    generator: Generator,
    clip: CLIP,
    text_features: Float[Array, "texts embed"],
    config: MapperTrainConfig,
    arcface: ArcFace | None = None,
) -> Callable[[Mapper, Any], Metrics]:
    """The losses of a mapper without training; arguments as for :func:`make_mapper_train_step`.

    Returns:
        ``evaluate(mapper, latents) -> metrics``, also ``jax.pmap``ped over all devices.
    """
    judges = replicate(_judges(generator, clip, text_features, config, arcface))

    @functools.partial(jax.pmap, axis_name=DEVICES, in_axes=(None, None, 0), out_axes=None)
    def pmapped_evaluation(mapper: Mapper, judges: _Judges, latents: Latents):
        _, metrics = _loss(cast(Any, mapper), judges, latents, config)
        vector, unravel = ravel_pytree(metrics)
        return unravel(jax.lax.pmean(vector, DEVICES))

    return lambda mapper, latents: pmapped_evaluation(mapper, judges, shard(latents))


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> Int[np.ndarray, " batch"]:
    """Which latents make the global batch of a step; every epoch is a new permutation.

    A pure function of its arguments, so that a resumed run goes on with the same batches. Latents
    that do not fill a batch at the end of an epoch are left out of it.
    """
    epoch, batch = divmod(step, size // batch_size)
    return _order(seed, epoch, size)[batch * batch_size : (batch + 1) * batch_size]


@functools.lru_cache(maxsize=1)
def _order(seed: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    return np.random.default_rng((seed, epoch)).permutation(size)


def _optimizer(config: MapperTrainConfig) -> optax.GradientTransformation:
    make = {"ranger": ranger, "adam": optax.adam}[config.optimizer]
    return make(config.learning_rate)


def _judges(
    generator: Generator, clip: CLIP, text_features: Array, config: MapperTrainConfig, arcface: Any
) -> _Judges:
    text_features = jnp.atleast_2d(text_features)
    if text_features.shape != (1, clip.config.embed_dim):
        raise InputError(
            f"text_features have shape {text_features.shape}, expected (1,"
            f" {clip.config.embed_dim}): a mapper learns one text"
        )
    return _Judges(generator, clip, arcface if config.id_lambda else None, text_features)


def _loss(
    mapper: Callable[[Latents], Latents],
    judges: _Judges,
    latents: Latents,
    config: MapperTrainConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """The official ``calc_loss``: means over the batch, and over all entries of a latent."""
    check_space(mapper, latents)
    residual = jax.tree.map(lambda r: config.strength * r, mapper(latents))
    edited = draw(judges.generator, jax.tree.map(jnp.add, latents, residual))
    metrics = {
        "clip_loss": clip_loss(judges.clip, edited, judges.text_features, config.preprocess).mean(),
        # In StyleSpace a sum over layers of each layer's mean.
        "latent_l2": sum(jnp.square(r).mean() for r in jax.tree.leaves(residual)),
    }
    loss = config.clip_lambda * metrics["clip_loss"]
    loss += config.latent_l2_lambda * metrics["latent_l2"]
    if judges.arcface is not None:
        # The reference does not depend on the mapper, so no gradient passes through it.
        original = draw(judges.generator, latents)
        metrics["id_loss"] = id_loss(judges.arcface, edited, original).mean()
        loss += config.id_lambda * metrics["id_loss"]
    return loss, {"loss": loss, **metrics}
