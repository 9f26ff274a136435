"""Latent optimization: gradient descent on the latents of an image (StyleCLIP, section 4)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from styleclip_jax.errors import InputError, check_choices
from styleclip_jax.latents import Latents, squared_distance, synthesize, to_styles
from styleclip_jax.losses import direction_loss, similarity_loss
from styleclip_jax.methods.linear_start import (
    START_STEPS,
    SampleFeatures,
    latent_directions,
    sample_features,
    style_change,
)
from styleclip_jax.methods.objective import (
    AreaPreprocess,
    ExtraLoss,
    Guidance,
    Objective,
    Originals,
    TextFeatures,
    Texts,
    Tokenizers,
    as_number,
    check_objective,
    describe_originals,
    image_losses,
    is_zero,
    make_objective,
)
from styleclip_jax.models.arcface import ArcFace
from styleclip_jax.models.clip import CLIP
from styleclip_jax.models.stylegan2 import Generator

Space = Literal["w_plus", "w", "stylespace"]
Mode = Literal["edit", "generate"]

_ADAM = optax.scale_by_adam()
_LARGEST = float(np.finfo(np.float32).max)
# Steps between checks whether all images are finished; a check stalls an accelerator.
_CHECK_EVERY = 10
# Losses are recorded in a multiple of this number of rows, so that most numbers of steps share a
# program.
_ROWS = 128
# One number for all images, or one per image.
Number = float | Num[Array, "*images"] | Num[np.ndarray, "*images"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "learning_rate",
        "l2_lambda",
        "id_lambda",
        "orthogonal_lambda",
        "keep_lambda",
        "stop_loss",
        "patience",
        "min_improvement",
    ),
    meta_fields=(
        "steps",
        "space",
        "mode",
        "guidance",
        "views",
        "view_kinds",
        "guide_resolution",
        "preprocess",
        "start_samples",
    ),
)
@dataclasses.dataclass(frozen=True)
class OptimizeConfig:
    """Settings of :func:`edit_latents`; the defaults are the official ones.

    A pytree: numbers are leaves (a scalar, or one number per image) and may be traced, so changing
    them does not recompile. Choices, including the numbers of steps and views, are static, but
    runs of up to 128 steps, 129 to 256 and so on share a compiled step.

    Attributes:
        steps: Number of steps; the maximum if ``stop_loss`` or ``patience`` is set.
        learning_rate: Adam's peak learning rate; see :func:`learning_rate_schedule`.
        l2_lambda: Weight of the squared distance to the start latents, summed over all entries.
        id_lambda: Weight of the identity loss; needs an ArcFace unless zero.
        space: ``"w_plus"``; ``"w"``, which adds the same change to all layers and preserves more of
            the image; or ``"stylespace"``, where gradient descent does not change the ToRGB styles.
        mode: ``"edit"`` an image, or ``"generate"`` one from the text alone. With guidance
            ``"similarity"``, generating drops the distance and identity terms, as in the official
            code. With ``"direction"``, the start takes the place of the original image, and only
            the identity term is dropped.
        guidance: ``"similarity"`` of image and text, or the ``"direction"`` in which the image
            changes, which preserves what the text does not mention; see
            :func:`styleclip_jax.losses.direction_loss`.
        orthogonal_lambda: With guidance by direction, the weight of all other changes.
        keep_lambda: Weight of the texts to keep; used only if ``keep_features`` are given.
        views: CLIP's losses are means over this number of random views of the edited image, with
            new views in every step. 0: the image itself.
        view_kinds: Kinds of views, from :data:`styleclip_jax.views.VIEWS`.
        stop_loss: An image is finished when its loss is below this. None: never.
        patience: An image is finished when its loss has not improved by ``min_improvement`` for
            this many steps; 0: never. A finished image no longer changes, and the run stops when
            all images are finished.
        min_improvement: See ``patience``.
        guide_resolution: The losses use the generator's skip output at this lower resolution, at a
            fraction of the cost. None: the full image.
        preprocess: Preprocessing for CLIP; see :func:`styleclip_jax.losses.clip_pixels`.
        start_samples: Every edit starts from the best of a few steps along the text's direction in
            W, which a regression on this number of random images finds; see
            :mod:`styleclip_jax.methods.linear_start`. 0: from the image itself.
    """

    steps: int = 300
    learning_rate: Number = 0.1
    l2_lambda: Number = 0.008
    id_lambda: Number = 0.0
    space: Space = "w_plus"
    mode: Mode = "edit"
    guidance: Guidance = "similarity"
    orthogonal_lambda: Number = 0.25
    keep_lambda: Number = 100.0
    views: int = 0
    view_kinds: tuple[str, ...] = ("shift", "noise")
    stop_loss: Number | None = None
    patience: Number = 0
    min_improvement: Number = 1e-3
    guide_resolution: int | None = None
    preprocess: AreaPreprocess = "styleclip"
    start_samples: int = 0

    def __post_init__(self) -> None:
        check_choices(self, space=Space, mode=Mode)
        check_objective(self)
        for field, least in {
            "steps": 1,
            "learning_rate": 0,
            "l2_lambda": 0,
            "id_lambda": 0,
            "orthogonal_lambda": 0,
            "keep_lambda": 0,
            "patience": 0,
            "min_improvement": 0,
            "start_samples": 0,
        }.items():
            number = _known(getattr(self, field))
            if number is not None and not np.all((least <= number) & (number <= _LARGEST)):
                raise InputError(f"{field} is {number}, expected a number of at least {least}")
        number = _known(self.stop_loss)
        if number is not None and not np.all(np.abs(number) <= _LARGEST):
            raise InputError(f"stop_loss is {number}, expected a finite number")


def _known(number: Any) -> Any:
    """The value of a number; None if it is traced or a placeholder of JAX."""
    known = isinstance(number, int | float | np.ndarray | np.generic | jax.Array)
    return number if known and not isinstance(number, Tracer) else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EditResult:
    """The result of :func:`edit_latents`.

    Attributes:
        latents: The edited latents, in the space of the optimization.
        images: Their images (B, R, R, 3) in about [-1, 1], at full resolution.
        losses: (steps, B), the loss per image before every step; NaN after the image's last step.
        steps: Number of steps taken per image.
        failed_at: The step at which an image's loss, or the final image, was not finite; 0: none.
            A failed image is returned unedited.
    """

    latents: Latents
    images: Float[Array, "batch resolution resolution 3"]
    losses: Float[Array, "steps batch"]
    steps: Int[Array, " batch"]
    failed_at: Int[Array, " batch"]

    def failures(self) -> dict[int, str]:
        """Describes the failed edits, by number of the image."""
        failed_at, losses = np.asarray(self.failed_at), np.asarray(self.losses)
        return {
            int(i): _describe_failure(losses[:, i], int(failed_at[i]))
            for i in np.flatnonzero(failed_at)
        }


class _Program(NamedTuple):
    """Static settings, in addition to those of the objective; ``optimizer`` None: Adam."""

    mode: str
    guide_resolution: int | None
    space: Space
    optimizer: optax.GradientTransformation | None


class _Problem(NamedTuple):
    """Constants of all steps; ``numbers`` are settings."""

    generator: Generator
    objective: Objective
    start: Latents
    originals: Originals | None
    key: PRNGKeyArray | None
    numbers: dict[str, Float[Array, "*images"]]


class _State(NamedTuple):
    """State that a step updates."""

    step: Int[Array, ""]
    latents: Latents
    optimizer: optax.OptState
    losses: Float[Array, "rows batch"]
    best: Float[Array, " batch"]
    best_step: Int[Array, " batch"]
    taken: Int[Array, " batch"]
    active: Bool[Array, " batch"]
    failed_at: Int[Array, " batch"]


def learning_rate_schedule(
    peak: float | Float[Array, "*images"], steps: int | Num[Array, ""]
) -> optax.Schedule:
    """A linear warm-up over the first 5 % of the steps and a cosine decay over the last 25 %.

    As ``get_lr`` of the official ``optimization/run_optimization.py``, the first rate is zero.
    """

    def schedule(step: ArrayLike) -> Float[Array, "*images"]:
        t = jnp.asarray(step, jnp.float32) / jnp.asarray(steps, jnp.float32)
        ramp_down = 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(1, (1 - t) / 0.25))
        return peak * ramp_down * jnp.minimum(1, t / 0.05)

    return schedule


def edit_latents(
    generator: Generator,
    clip: CLIP | Sequence[CLIP],
    latents: Latents,
    text_features: Texts,
    config: OptimizeConfig = OptimizeConfig(),
    arcface: ArcFace | None = None,
    *,
    neutral_features: Texts | None = None,
    keep_features: Texts | None = None,
    tokenizer: Tokenizers | None = None,
    extra_loss: ExtraLoss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    directions: Float[Array, "_ _"] | None = None,
    key: PRNGKeyArray | None = None,
    on_progress: Callable[[int, Float[np.ndarray, " batch"], Latents], object] | None = None,
    progress_every: int = 10,
) -> EditResult:
    """Edits latents by gradient descent until their images match a text.

    Images are independent: an image that is finished, or whose loss is not finite, does not stop
    the others. Latents that are sharded over devices (:func:`styleclip_jax.sharding.spread`) are
    edited on these devices, without communication.

    On accelerators the whole run is one compiled loop. On a CPU, where XLA runs the convolutions of
    a compiled loop on one thread, the host calls the same compiled step.

    The function works inside ``jax.jit`` and ``jax.vmap``, but ``jax.grad`` cannot differentiate
    its result, because the loop has no reverse mode.

    Args:
        generator: Synthesizes the images.
        clip: Scores the images; with several CLIPs, the loss is the mean of theirs.
        latents: W+ (B, L, w_dim); with ``space="stylespace"`` also StyleSpace coordinates.
            With ``mode="generate"`` usually ``generator.mean_latents(B)``.
        text_features: ``clip.encode_text`` of one text per image, (B, E), or of one text for all,
            (1, E). With several CLIPs, a sequence with one array per CLIP, here and below. With a
            ``tokenizer`` also a string or a sequence of strings.
        config: The settings.
        arcface: Identity network; only needed if ``config.id_lambda`` is not zero.
        neutral_features: Features of a text that describes the images before and after the edit,
            such as "a face", in the shape of ``text_features``; required for guidance by direction.
        keep_features: Features (K, E) of texts whose similarity to the images should not change.
        tokenizer: The CLIP's tokenizer, if texts are strings; with several CLIPs, a sequence.
        extra_loss: Another loss, ``extra_loss(images, latents) -> (B,)``, of the edited images (at
            ``config.guide_resolution``) and latents. A pure JAX function; a new object
            triggers a new compilation. Bind arrays, such as a network's parameters, with
            ``jax.tree_util.Partial``, which makes them arguments of the compiled program.
        optimizer: An optax transformation instead of Adam and its schedule;
            ``config.learning_rate`` then has no effect. Every image has its own state. A new
            object triggers a new compilation.
        directions: Directions in W, (B, w_dim) or (1, w_dim), from
            :func:`styleclip_jax.methods.linear_start.latent_directions`: every image starts where
            its loss is lowest along its direction. None: computed here if ``config.start_samples``
            is not zero. For several calls, encode the samples once and pass the directions.
        key: Key of the random views. None: ``jax.random.key(0)``.
        on_progress: Called every ``progress_every`` steps and after the last step with the number
            of steps taken, the loss before every image's last step, and the latents. The run stops
            if it returns True. The device waits for it, so do not call it too often.
        progress_every: See ``on_progress``.

    Returns:
        Latents, images and losses.

    Raises:
        InputError: Shapes do not match; the ArcFace, neutral text or tokenizer that the arguments
            require is missing; ``keep_features`` are given with ``mode="generate"``; or
            ``on_progress`` is given inside a caller's ``jax.jit`` or ``jax.vmap``.
        FloatingPointError: The edits of all images failed; the message names the step. If only some
            failed, see :meth:`EditResult.failures`. Not raised inside a caller's ``jax.jit``.
    """
    latents = _check(generator, latents, config, arcface, keep_features)
    if isinstance(optimizer, str):
        raise InputError(f"optimizer is {optimizer!r}, expected an optax transformation")
    batch = jax.tree.leaves(latents)[0].shape[0]
    arcface = arcface if config.mode == "edit" else None
    objective = make_objective(
        clip,
        text_features,
        config,
        arcface,
        neutral_features,
        keep_features,
        tokenizer,
        extra_loss,
        batch,
    )
    if directions is None and config.start_samples:
        samples = sample_features(
            generator,
            clip,
            config.start_samples,
            resolution=config.guide_resolution,
            preprocess=config.preprocess,
        )
        directions = latent_directions(samples, objective.texts, objective.neutrals)
    if config.space == "stylespace":
        latents = jax.jit(to_styles)(generator, latents)
    starts = [latents]
    if directions is not None:
        _check_directions(generator, batch, directions)
        starts = _starts(generator, latents, directions)
    program = _Program(config.mode, config.guide_resolution, config.space, optimizer)
    originals, state = _start(generator, objective, starts[0], config.steps, program)
    if config.views and key is None:
        key = jax.random.key(0)
    key = key if config.views else None
    problem = _Problem(generator, objective, starts[0], originals, key, _numbers(config))
    if directions is not None:
        state = state._replace(latents=_best(starts, problem._replace(key=None), program))
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((problem, state))):
        if on_progress:
            raise InputError(
                "on_progress cannot be called inside jax.jit or jax.vmap; leave it out, or call"
                " edit_latents outside of them"
            )
        state = _advance(problem, state, config.steps, program)
        return _finish(problem, state, config.steps)

    advance = _advance_from_host if jax.default_backend() == "cpu" else _advance
    reports = range(progress_every, config.steps, progress_every) if on_progress else ()
    can_finish = config.stop_loss is not None or not is_zero(config.patience)
    checks = range(_CHECK_EVERY, config.steps, _CHECK_EVERY) if can_finish else ()
    for until in sorted({*reports, *checks, config.steps}):
        state = advance(problem, state, until, program)
        stopped = not np.asarray(state.active).any()
        if on_progress and (stopped or until == config.steps or until in reports):
            stopped |= bool(on_progress(int(state.step), _last_losses(state), state.latents))
        if stopped:
            break
    result = _finish(problem, state, config.steps)
    # No loss was computed for the images after the last step.
    finite = _is_finite(problem.start, result)
    if not np.asarray(finite | (state.failed_at > 0)).all():
        result = _finish(problem, _restore(problem, state, finite), config.steps)
    failures = result.failures()
    if len(failures) == batch:
        raise FloatingPointError(failures[0])
    return result


def best_fits(
    samples: SampleFeatures,
    text_features: TextFeatures,
    config: OptimizeConfig = OptimizeConfig(),
    neutral_features: TextFeatures | None = None,
) -> Int[Array, " texts"]:
    """Finds the random image that matches every text best, as a start for mode "generate".

    With guidance ``"direction"``, images are compared with the mean features of all samples, so
    that attributes count that the text mentions, and others do not.

    Args:
        samples: The candidates, from :func:`styleclip_jax.sample_features`.
        text_features: Features of T texts, (T, E); with several CLIPs, a sequence with one array
            per CLIP.
        config: ``guidance`` and ``orthogonal_lambda`` are used.
        neutral_features: Features (1, E) of a text that describes all images, with several CLIPs a
            sequence; required for guidance ``"direction"``.

    Returns:
        The index of a sample for every text.

    Raises:
        InputError: ``neutral_features`` are missing.
    """
    several = isinstance(text_features, Sequence)
    texts: Any = text_features if several else (text_features,)
    neutrals: Any = neutral_features if several else (neutral_features,)
    if config.guidance == "similarity":
        neutrals = (None,) * len(texts)
    elif neutral_features is None:
        raise InputError("neutral_features are missing, which guidance 'direction' needs")
    losses = []
    for seen, text, neutral in zip(samples.features, texts, neutrals, strict=True):
        if neutral is None:
            loss = functools.partial(similarity_loss, seen)
        else:
            loss = functools.partial(
                direction_loss,
                seen,
                jnp.mean(seen, axis=0),
                neutral_features=neutral,
                orthogonal_lambda=as_number(config.orthogonal_lambda),
            )
        losses.append(jax.vmap(loss)(text[:, None]))
    return jnp.argmin(jnp.mean(jnp.stack(losses), axis=0), axis=1)


@jax.jit
def _is_finite(start: Latents, result: EditResult) -> Bool[Array, " batch"]:
    """Whether images and the squared distances of their latents to the start are finite."""
    images = jnp.isfinite(result.images).all(axis=(1, 2, 3))
    return images & jnp.isfinite(squared_distance(result.latents, start))


@jax.jit
def _restore(problem: _Problem, state: _State, finite: Bool[Array, " batch"]) -> _State:
    """Restores the start latents of images that are not finite after the last step."""
    latents = jax.tree.map(
        lambda new, start: jnp.where(_each(finite, new), new, start), state.latents, problem.start
    )
    failed_at = jnp.where(finite | (state.failed_at > 0), state.failed_at, state.taken)
    return state._replace(latents=latents, failed_at=failed_at)


def _last_losses(state: _State) -> Float[np.ndarray, " batch"]:
    """The loss before the last step of every image."""
    losses, taken = np.asarray(state.losses), np.asarray(state.taken)
    return losses[taken - 1, np.arange(len(taken))]


def _describe_failure(losses: Float[np.ndarray, " steps"], step: int) -> str:
    what = "image" if np.isfinite(losses[step - 1]) else "loss"
    # The learning rate of the first step is zero.
    cause = (
        "try a lower learning_rate"
        if step > 2 or what == "image"
        else "the learning rate is not the cause; check weights, latents and text features"
    )
    return f"the {what} is not finite at step {step} of {len(losses)}; {cause}"


def _check(generator, latents, config, arcface, keep_features) -> Latents:
    """Raises InputError if arguments do not match; returns float32 latents."""
    architecture = generator.config
    if isinstance(latents, tuple | list):
        shapes = tuple(np.shape(s)[1:] for s in latents)
        if shapes != tuple((n,) for n in architecture.style_dims):
            raise InputError(
                f"latents are {len(latents)} StyleSpace arrays of widths"
                f" {[s[-1] if s else None for s in shapes]}, expected"
                f" {list(architecture.style_dims)} for this generator"
            )
        if config.space != "stylespace":
            raise InputError("latents are StyleSpace arrays; set space='stylespace'")
    else:
        architecture.check_w_plus(np.shape(latents))
    latents = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), latents)
    if isinstance(latents, list):
        latents = tuple(latents)
    batch = jax.tree.leaves(latents)[0].shape[0]
    if not batch:
        raise InputError("there are no latents to edit")
    for field in dataclasses.fields(config):
        shape = np.shape(getattr(config, field.name))
        if field.name != "view_kinds" and shape not in ((), (batch,)):
            raise InputError(f"{field.name} has shape {shape}, expected one number or ({batch},)")
    if config.mode == "generate" and keep_features is not None:
        raise InputError(
            "keep_features need an original image, but mode is 'generate'; remove them or use mode"
            " 'edit'"
        )
    # Traced values are unknown.
    if arcface is None and config.mode == "edit" and not isinstance(config.id_lambda, Tracer):
        if not is_zero(config.id_lambda):
            raise InputError(
                f"id_lambda is {config.id_lambda}, which needs an ArcFace; pass arcface or set it"
                " to 0"
            )
    architecture.check_guide_resolution(config.guide_resolution)
    return latents


def _check_directions(generator: Generator, batch: int, directions: Float[Array, "_ _"]) -> None:
    width = generator.config.w_dim
    expected = sorted({(1, width), (batch, width)})
    if np.shape(directions) not in expected:
        raise InputError(
            f"directions have shape {np.shape(directions)}, expected"
            f" {' or '.join(map(str, expected))}"
        )


def _starts(
    generator: Generator, latents: Latents, directions: Float[Array, "_ w_dim"]
) -> list[Latents]:
    """Latents at all candidate starts along their directions; the first are the latents."""
    change: Any = directions[:, None]
    if isinstance(latents, tuple):
        change = jax.jit(style_change)(generator, directions)

    def after(step: float) -> Latents:
        return jax.tree.map(lambda x, d: x + step * d, latents, change)

    return [after(step) for step in START_STEPS]


def _numbers(config: OptimizeConfig) -> dict[str, Float[Array, "*images"]]:
    """Settings that are not part of the objective; disabled limits are infinite."""
    numbers = {
        name: as_number(getattr(config, name))
        for name in ("steps", "learning_rate", "l2_lambda", "min_improvement", "patience")
    }
    numbers["stop_loss"] = as_number(-np.inf if config.stop_loss is None else config.stop_loss)
    patience = numbers["patience"]
    numbers["patience"] = jnp.where(patience > 0, patience, jnp.inf)
    return numbers


def _start(
    generator: Generator, objective: Objective, latents: Latents, steps: int, program: _Program
) -> tuple[Originals | None, _State]:
    originals = None
    if objective.needs_originals:
        originals = _originals(generator, objective, latents, program.guide_resolution)
    entries = jax.tree.leaves(latents)[0]
    # One number per image, on the images' devices.
    zeros = jnp.zeros_like(jnp.sum(entries, axis=range(1, entries.ndim)), jnp.float32)
    state = _first_state(latents, zeros, recorded_rows(steps), program)
    if not isinstance(zeros, Tracer) and isinstance(zeros.sharding, NamedSharding):
        state = state._replace(optimizer=jax.device_put(state.optimizer, zeros.sharding))
    return originals, state


@functools.partial(jax.jit, static_argnames=("rows", "program"))
def _first_state(
    latents: Latents, zeros: Float[Array, " batch"], rows: int, program: _Program
) -> _State:
    # Explicit types, because weak ones would become strong in the first step, which would then be
    # compiled twice.
    none = zeros.astype(jnp.int32)
    return _State(
        # On the devices of the images, like after a step.
        step=jnp.sum(none),
        latents=latents,
        optimizer=jax.vmap((program.optimizer or _ADAM).init)(latents),
        losses=jnp.full((rows, 1), jnp.nan, jnp.float32) + zeros,
        best=zeros + jnp.inf,
        best_step=none,
        taken=none,
        active=zeros == 0,
        failed_at=none,
    )


def recorded_rows(steps: int) -> int:
    """Number of rows in which the losses of all steps are recorded."""
    return -(-steps // _ROWS) * _ROWS


def _best(starts: Sequence[Latents], problem: _Problem, program: _Program) -> Latents:
    """The start with the lowest loss per image."""
    return _lowest(starts, [_loss_at(start, problem, program) for start in starts])


@jax.jit
def _lowest(starts: Sequence[Latents], losses: Sequence[Array]) -> Latents:
    stacked = jnp.stack(losses)
    best = jnp.argmin(jnp.where(jnp.isfinite(stacked), stacked, jnp.inf), axis=0)
    return jax.tree.map(lambda *x: jnp.stack(x)[best, jnp.arange(len(best))], *starts)


@functools.partial(jax.jit, static_argnames="resolution")
def _originals(
    generator: Generator, objective: Objective, latents: Latents, resolution: int | None
) -> Originals:
    return describe_originals(objective, synthesize(generator, latents, resolution))


def _loss(
    latents: Latents, problem: _Problem, program: _Program, step: Int[Array, ""]
) -> Float[Array, " batch"]:
    if isinstance(latents, tuple):
        fixed = problem.generator.config.rgb_style_indices
        latents = tuple(
            jax.lax.stop_gradient(s) if i in fixed else s for i, s in enumerate(latents)
        )
    images = synthesize(problem.generator, latents, program.guide_resolution)
    key = None if problem.key is None else jax.random.fold_in(problem.key, step)
    loss, _ = image_losses(problem.objective, images, latents, problem.originals, key)
    if program.mode == "generate" and problem.objective.neutrals is None:
        return loss
    return loss + problem.numbers["l2_lambda"] * squared_distance(latents, problem.start)


@functools.partial(jax.jit, static_argnames="program")
def _loss_at(latents: Latents, problem: _Problem, program: _Program) -> Float[Array, " batch"]:
    return _loss(latents, problem, program, jnp.zeros((), jnp.int32))


def _step(problem: _Problem, state: _State, program: _Program) -> _State:
    def total(latents):
        losses = _loss(latents, problem, program, state.step)
        return jnp.sum(losses), losses

    numbers = problem.numbers
    gradients, losses = jax.grad(total, has_aux=True)(state.latents)
    if program.space == "w":
        gradients = _shared(gradients)
    # One update per image, so that images in a batch are independent.
    update = jax.vmap((program.optimizer or _ADAM).update)
    updates, optimizer = update(gradients, state.optimizer, state.latents)
    if program.optimizer is None:
        rate = learning_rate_schedule(numbers["learning_rate"], numbers["steps"])(state.step)
        updates = jax.tree.map(lambda u: -_each(rate, u) * u, updates)
    else:
        updates = _within_space(updates, problem.generator, program.space)
    # A cosine similarity may stay finite long after the latents have overflowed.
    distance = squared_distance(state.latents, problem.start)
    finite = jnp.isfinite(losses) & jnp.isfinite(distance)
    moves, failed = state.active & finite, state.active & ~finite

    def moved(old: Array, update: Array, start: Array) -> Array:
        new = jnp.where(_each(moves, old), old + update, old)
        return jnp.where(_each(failed, old), start, new)

    improved = losses < state.best - numbers["min_improvement"]
    best_step = jnp.where(improved, state.step, state.best_step)
    # Patience is infinite if it is disabled.
    stalled = (state.step - best_step).astype(jnp.float32) >= numbers["patience"]
    finished = stalled | (losses < numbers["stop_loss"])
    return _State(
        step=state.step + 1,
        latents=jax.tree.map(moved, state.latents, updates, problem.start),
        optimizer=optimizer,
        losses=state.losses.at[state.step].set(jnp.where(state.active, losses, jnp.nan)),
        best=jnp.where(improved, losses, state.best),
        best_step=best_step,
        taken=state.taken + state.active.astype(jnp.int32),
        active=moves & ~finished,
        failed_at=jnp.where(failed, state.step + 1, state.failed_at),
    )


def _shared(changes: Any) -> Any:
    """Replaces the changes of all layers by their mean."""
    return jnp.broadcast_to(changes.mean(1, keepdims=True), changes.shape)


def _within_space(updates: Any, generator: Generator, space: Space) -> Any:
    """Projects updates onto the space; weight decay, for example, would leave it."""
    if space == "w":
        return _shared(updates)
    if space == "stylespace":
        fixed = generator.config.rgb_style_indices
        return tuple(jnp.zeros_like(u) if i in fixed else u for i, u in enumerate(updates))
    return updates


def _each(number: Any, x: Array) -> Array:
    """Reshapes a number, scalar or one per image, to broadcast against latents."""
    return number.reshape(number.shape + (1,) * (x.ndim - 1)) if number.ndim else number


@functools.partial(jax.jit, static_argnames="program")
def _advance(problem: _Problem, state: _State, until: Array | int, program: _Program) -> _State:
    """Steps to ``until`` in one compiled loop.

    It does not stop when all images are finished, because that needs communication.
    """
    return jax.lax.while_loop(
        lambda state: state.step < until,
        lambda state: _step(problem, state, program),
        state,
    )


_step_from_host = jax.jit(_step, static_argnames="program")


def _advance_from_host(problem: _Problem, state: _State, until: int, program: _Program) -> _State:
    """Like :func:`_advance`, but steps from the host and stops when all images are finished."""
    for _ in range(int(state.step), until):
        state = _step_from_host(problem, state, program)
        if not np.asarray(state.active).any():
            break
    return state


def _finish(problem: _Problem, state: _State, steps: int) -> EditResult:
    # A separate program, which the caller has usually compiled for the first images.
    images = jax.jit(synthesize)(problem.generator, state.latents)
    losses = state.losses[:steps]
    return EditResult(state.latents, images, losses, state.taken, state.failed_at)
