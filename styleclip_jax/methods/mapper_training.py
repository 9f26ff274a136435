"""Training a latent mapper on every device of every host.

Patashnik et al., arXiv 2103.17249, section 5; the official file is ``mapper/training/coach.py``.
"""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from styleclip_jax.errors import InputError, check_choices
from styleclip_jax.io.checkpoints import fingerprint
from styleclip_jax.latents import Latents, synthesize
from styleclip_jax.methods.linear_start import START_STEPS, style_change
from styleclip_jax.methods.mapper_editing import check_space
from styleclip_jax.methods.objective import (
    AreaPreprocess,
    ExtraLoss,
    Guidance,
    Objective,
    Texts,
    Tokenizers,
    check_objective,
    describe_originals,
    image_losses,
    make_objective,
)
from styleclip_jax.methods.ranger import ranger
from styleclip_jax.models.arcface import ArcFace
from styleclip_jax.models.card import MapperCard
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.delta_mapper import DeltaMapper
from styleclip_jax.models.mapper import Mapper, start_at
from styleclip_jax.models.stylegan2 import Generator
from styleclip_jax.sharding import DEVICES, replicate, shard
from styleclip_jax.versions import library_versions

Metrics = dict[str, Float[Array, ""]]
OptimizerName = Literal["ranger", "adam"]


@dataclasses.dataclass(frozen=True)
class MapperTrainConfig:
    """Settings of mapper training; the defaults are the official ones.

    Attributes:
        optimizer: ``"ranger"``, ``"adam"`` or an optax transformation.
        learning_rate: Step size of the optimizer; no effect on an optax transformation.
        clip_lambda: Weight of the CLIP loss.
        id_lambda: Weight of the identity loss; used only if an ArcFace is given.
        latent_l2_lambda: Weight of the mean squared change of the latents.
        guidance: ``"similarity"`` of image and text, or the ``"direction"`` in which the image
            changes, which preserves what the text does not mention; see
            :func:`styleclip_jax.losses.direction_loss`.
        orthogonal_lambda: With guidance by direction, the weight of all other changes.
        keep_lambda: Weight of the texts to keep; used only if ``keep_features`` are given.
        views: CLIP's losses are means over this number of random views of the edited images, with
            new views in every step. 0: the images themselves.
        view_kinds: Kinds of views, from :data:`styleclip_jax.views.VIEWS`.
        strength: Factor of the mapper's output, ``w + strength * mapper(w)``.
        preprocess: Preprocessing for CLIP; see :func:`styleclip_jax.losses.clip_pixels`.
    """

    optimizer: OptimizerName | optax.GradientTransformation = "ranger"
    learning_rate: float = 0.5
    clip_lambda: float = 1.0
    id_lambda: float = 0.1
    latent_l2_lambda: float = 0.8
    guidance: Guidance = "similarity"
    orthogonal_lambda: float = 0.25
    keep_lambda: float = 100.0
    views: int = 0
    view_kinds: tuple[str, ...] = ("shift", "noise")
    strength: float = 0.1
    preprocess: AreaPreprocess = "styleclip"

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, optax.GradientTransformation):
            check_choices(self, optimizer=OptimizerName)
        check_objective(self)
        for field in (
            "learning_rate",
            "clip_lambda",
            "id_lambda",
            "latent_l2_lambda",
            "orthogonal_lambda",
            "keep_lambda",
        ):
            if not getattr(self, field) >= 0:
                raise InputError(f"{field} is {getattr(self, field)}, expected at least 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MapperState:
    """State that a training step updates; the same on every device.

    Attributes:
        mapper: The mapper being trained.
        optimizer: Moving averages and, for Ranger, the slow weights.
        step: Number of steps taken.
    """

    mapper: Mapper | DeltaMapper
    optimizer: optax.OptState
    step: Int[Array, ""]


class _Problem(NamedTuple):
    """Constants of all steps."""

    generator: Generator
    objective: Objective
    key: UInt32[Array, " words"] | None


def mapper_card(
    text: str | None,
    config: Any,
    generator: Generator,
    **settings: Any,
) -> MapperCard:
    """Makes the card of a mapper before its training, for ``MapperConfig(card=...)``.

    Args:
        text: The text that the mapper learns. None: any text.
        config: A ``MapperTrainConfig`` or a ``DeltaTrainConfig``.
        generator: The generator that the mapper learns to edit.
        **settings: More settings to record, such as the number of steps.
    """
    recorded = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if isinstance(recorded["optimizer"], optax.GradientTransformation):
        recorded["optimizer"] = "optax"
        # Not used: the transformation has its own.
        del recorded["learning_rate"]
    return MapperCard(
        text=text,
        # A mapper for any text predicts changes at full strength.
        strength=recorded.pop("strength", 1.0),
        generator=fingerprint(generator),
        settings=recorded | settings,
        versions=library_versions(),
        date=datetime.date.today().isoformat(),
    )


def init_mapper_state(mapper: Mapper | DeltaMapper, config: Any) -> MapperState:
    """Makes the state before the first step, on all local devices.

    Args:
        mapper: The initial mapper; it is copied, because a step donates its state.
        config: A ``MapperTrainConfig`` or a ``DeltaTrainConfig``.
    """
    return replicate(_init_state(mapper, config))


@functools.partial(jax.jit, static_argnames="config")
def _init_state(mapper: Mapper | DeltaMapper, config: Any) -> MapperState:
    """One program, because one per shape takes longer to compile."""
    parameters: Any = jax.tree.map(lambda x: jnp.array(x, jnp.float32), mapper)
    return MapperState(parameters, _optimizer(config).init(parameters), jnp.zeros((), jnp.int32))


def start_along(
    mapper: Mapper,
    generator: Generator,
    direction: Float[Array, " w_dim"],
    config: MapperTrainConfig,
    evaluate: Callable[[Mapper, Any], Metrics],
    batches: Sequence[Any],
) -> Mapper:
    """Initializes a mapper with the best step along the direction of its text.

    With random weights, as in the official code, training first has to find the attribute that the
    text describes, and may change other attributes with it.

    Args:
        mapper: A mapper with random weights.
        generator: Its generator.
        direction: From :func:`styleclip_jax.methods.linear_start.latent_directions`.
        config: The settings of the training.
        evaluate: From :func:`make_mapper_evaluation`.
        batches: This host's shares of the batches of latents on which the steps are compared.
    """
    residual: Any = jnp.broadcast_to(direction, (generator.num_layers, len(direction)))
    if mapper.space == "stylespace":
        change = jax.jit(style_change)(generator, direction[None])
        residual = jax.tree.map(lambda x: x[0], change)
    starts = [mapper]
    for step in START_STEPS[1:]:
        scaled = jax.tree.map(lambda x, s=step: s / config.strength * x, residual)
        starts.append(start_at(mapper, scaled))
    losses = [sum(float(evaluate(start, batch)["loss"]) for batch in batches) for start in starts]
    return starts[int(np.argmin(losses))]


def make_mapper_train_step(
    generator: Generator,
    clip: CLIP | Sequence[CLIP],
    text_features: Texts,
    config: MapperTrainConfig,
    arcface: ArcFace | None = None,
    *,
    neutral_features: Texts | None = None,
    keep_features: Texts | None = None,
    tokenizer: Tokenizers | None = None,
    extra_loss: ExtraLoss | None = None,
    key: PRNGKeyArray | None = None,
) -> Callable[[MapperState, Any], tuple[MapperState, Metrics]]:
    """Makes a training step that is ``jax.pmap``ped over all devices of all hosts.

    The networks are copied to the devices once, here. A step shards the batch over the devices and
    all-reduces the mapper's gradients and the metrics in one message.

    Args:
        generator: Synthesizes the images.
        clip: Scores the images; with several CLIPs, the loss is the mean of theirs.
        text_features: ``clip.encode_text`` of the text, (1, E); with several CLIPs, a sequence with
            one array per CLIP, here and below. With a ``tokenizer`` also the text as a string.
        config: The settings.
        arcface: Identity network. None: no identity loss.
        neutral_features: Features (1, E) of a text that describes all images, such as "a face";
            required for guidance by direction.
        keep_features: Features (K, E) of texts whose similarity to the images should not change.
        tokenizer: The CLIP's tokenizer, if texts are strings; with several CLIPs, a sequence.
        extra_loss: Another loss, ``extra_loss(images, latents) -> (B,)``, of the edited images and
            latents on a device; see :func:`styleclip_jax.edit_latents`.
        key: Key of the random views. None: ``jax.random.key(0)``.

    Returns:
        ``step(state, latents) -> (state, metrics)``. ``latents`` is this host's share of the global
        batch, on host or device, in the mapper's space (W+ or StyleSpace). ``state`` is donated:
        it cannot be used afterwards. ``metrics`` are means over the global batch: ``loss``; the
        unweighted terms ``clip_loss`` and ``latent_l2``, and ``keep_loss``, ``id_loss`` and
        ``extra_loss`` if they are part of it; ``gradient_norm`` and ``parameter_norm``. The step
        raises InputError if the batch is not divisible by the number of devices or does not match
        the mapper.
    """
    objective = make_objective(
        clip,
        text_features,
        config,
        arcface,
        neutral_features,
        keep_features,
        tokenizer,
        extra_loss,
        batch=1,
    )
    key = jax.random.key(0) if key is None else key
    # As plain numbers, which JAX accepts on several hosts.
    words = jax.random.key_data(key) if config.views else None
    problem = replicate(_Problem(generator, objective, words))
    step = _step_program(config, jax.random.key_impl(key))
    return lambda state, latents: step(state, problem, shard(latents))


@functools.lru_cache(maxsize=8)
def _step_program(config: MapperTrainConfig, key_implementation: Any) -> Callable:
    """The program of a step, which mappers for several texts share."""

    def loss(mapper: Any, problem: _Problem, latents: Latents, step: Int[Array, ""]) -> Any:
        key = None
        if problem.key is not None:
            # The same views on all devices, so that the result does not depend on their number.
            key = jax.random.wrap_key_data(problem.key, impl=key_implementation)
            key = jax.random.fold_in(key, step)
        return _loss(mapper, problem, latents, config, key)

    return pmapped_train_step(loss, config)


def make_mapper_evaluation(
    generator: Generator,
    clip: CLIP | Sequence[CLIP],
    text_features: Texts,
    config: MapperTrainConfig,
    arcface: ArcFace | None = None,
    *,
    neutral_features: Texts | None = None,
    keep_features: Texts | None = None,
    tokenizer: Tokenizers | None = None,
    extra_loss: ExtraLoss | None = None,
) -> Callable[[Mapper, Any], Metrics]:
    """Makes a function that computes a mapper's losses without training it.

    Arguments as for :func:`make_mapper_train_step`. Random views are disabled, so that evaluations
    are comparable.

    Returns:
        ``evaluate(mapper, latents) -> metrics``, also ``jax.pmap``ped over all devices.
    """
    objective = make_objective(
        clip,
        text_features,
        config,
        arcface,
        neutral_features,
        keep_features,
        tokenizer,
        extra_loss,
        batch=1,
    )
    objective = dataclasses.replace(objective, views=0)
    problem = replicate(_Problem(generator, objective, None))
    evaluate = _evaluation_program(config)
    return lambda mapper, latents: evaluate(mapper, problem, shard(latents))


@functools.lru_cache(maxsize=8)
def _evaluation_program(config: MapperTrainConfig) -> Callable:
    def loss(mapper: Any, problem: _Problem, latents: Latents) -> Any:
        return _loss(mapper, problem, latents, config, None)

    return pmapped_evaluation(loss)


def pmapped_train_step(
    loss: Callable[[Any, Any, Any, Int[Array, ""]], tuple[Float[Array, ""], Metrics]],
    config: Any,
) -> Callable[[MapperState, Any, Any], tuple[MapperState, Metrics]]:
    """Makes a training step of any mapper on all devices of all hosts, with one all-reduce.

    Args:
        loss: ``loss(mapper, problem, batch, step) -> (loss, metrics)``, means over the batch.
        config: A ``MapperTrainConfig`` or a ``DeltaTrainConfig``, whose optimizer is used.

    Returns:
        ``step(state, problem, batch) -> (state, metrics)``. ``problem``, the constants of all
        steps, is on all local devices, and the batch is sharded over them; see also
        :func:`make_mapper_train_step`.
    """
    optimizer = _optimizer(config)

    @functools.partial(
        jax.pmap, axis_name=DEVICES, in_axes=(None, None, 0), out_axes=None, donate_argnums=0
    )
    def step(state: MapperState, problem: Any, batch: Any):
        parameters: Any = state.mapper
        gradients, metrics = jax.grad(loss, has_aux=True)(parameters, problem, batch, state.step)
        # As one vector, which takes one message.
        vector, unravel = ravel_pytree((gradients, metrics))
        gradients, metrics = unravel(jax.lax.pmean(vector, DEVICES))
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, parameters)
        parameters = optax.apply_updates(parameters, updates)
        metrics["parameter_norm"] = optax.tree.norm(parameters)
        return MapperState(parameters, optimizer_state, state.step + 1), metrics

    return step


def pmapped_evaluation(
    loss: Callable[[Any, Any, Any], tuple[Float[Array, ""], Metrics]],
) -> Callable[[Any, Any, Any], Metrics]:
    """Makes an evaluation on all devices; arguments as for :func:`pmapped_train_step`."""

    @functools.partial(jax.pmap, axis_name=DEVICES, in_axes=(None, None, 0), out_axes=None)
    def evaluation(mapper: Any, problem: Any, batch: Any):
        _, metrics = loss(mapper, problem, batch)
        vector, unravel = ravel_pytree(metrics)
        return unravel(jax.lax.pmean(vector, DEVICES))

    # Mappers from anywhere, so that those before and in training share the program.
    return lambda mapper, problem, batch: evaluation(replicate(mapper), problem, batch)


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> Int[np.ndarray, " batch"]:
    """Indices of the latents in the global batch of a step; every epoch is a new permutation.

    A pure function of its arguments, so that a resumed run gets the same batches. An epoch drops
    its last, incomplete batch.
    """
    epoch, batch = divmod(step, size // batch_size)
    return _order(seed, epoch, size)[batch * batch_size : (batch + 1) * batch_size]


@functools.lru_cache(maxsize=1)
def _order(seed: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    return np.random.default_rng((seed, epoch)).permutation(size)


def _optimizer(config: Any) -> optax.GradientTransformation:
    if isinstance(config.optimizer, optax.GradientTransformation):
        return config.optimizer
    make = {"ranger": ranger, "adam": optax.adam}[config.optimizer]
    return make(config.learning_rate)


def _loss(
    mapper: Callable[[Latents], Latents],
    problem: _Problem,
    latents: Latents,
    config: MapperTrainConfig,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, ""], Metrics]:
    """The official ``calc_loss``: means over the batch, and over all entries of a latent."""
    check_space(mapper, latents)
    generator, objective = problem.generator, problem.objective
    residual = jax.tree.map(lambda r: config.strength * r, mapper(latents))
    originals = None
    if objective.needs_originals:
        # Independent of the mapper, so they have no gradient.
        originals = describe_originals(objective, synthesize(generator, latents))
    edited = jax.tree.map(jnp.add, latents, residual)
    images = synthesize(generator, edited)
    losses, terms = image_losses(objective, images, edited, originals, key)
    # In StyleSpace, the sum over layers of each layer's mean.
    layers = [jnp.square(r).mean() for r in jax.tree.leaves(residual)]
    latent_l2 = sum(layers, start=jnp.zeros(()))
    loss = losses.mean() + config.latent_l2_lambda * latent_l2
    means = {name: term.mean() for name, term in terms.items()}
    return loss, {"loss": loss, **means, "latent_l2": latent_l2}
