"""Inversion: finds latents that reproduce images and can be edited.

An encoder predicts the latents (e4e, arXiv 2102.02766). Optimization refines them but keeps them
close, because latents far from the prediction are hard to edit. Without an encoder the optimization
starts from the mean latent and uses one latent for all layers, like StyleGAN2's projector (arXiv
1912.04958, appendix D). Noise maps are not optimized, because edits would not have them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from styleclip_jax.errors import InputError
from styleclip_jax.latents import all_layers, squared_distance
from styleclip_jax.losses import (
    Perceptual,
    area_resize,
    identity_features,
    identity_loss,
    perceptual_distance,
    perceptual_features,
)
from styleclip_jax.methods.objective import as_number
from styleclip_jax.methods.optimization import learning_rate_schedule, recorded_rows
from styleclip_jax.models.arcface import ArcFace
from styleclip_jax.models.e4e import E4E, E4EConfig
from styleclip_jax.models.lpips import LPIPS
from styleclip_jax.models.stylegan2 import Generator

_ADAM = optax.scale_by_adam()
_DEVIATION_SAMPLES = 1000
# Noise of the projector's latents, in standard deviations of W, and the share of the steps in which
# it decreases to zero.
_LATENT_NOISE, _NOISE_STEPS = 0.05, 0.75
# The mean latents of an encoder and its generator differ by estimation error; those of different
# domains differ by about their length.
_SAME_MEAN = 0.5
# So that the PSNR of an exact reproduction is finite.
_LEAST_ERROR = 1e-10

Number = float | Num[Array, ""]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "learning_rate",
        "pixel_lambda",
        "perceptual_lambda",
        "id_lambda",
        "latent_lambda",
    ),
    meta_fields=("steps", "guide_resolution"),
)
@dataclasses.dataclass(frozen=True)
class InvertConfig:
    """Settings of :func:`invert`; a pytree whose numbers are leaves.

    Attributes:
        steps: Number of steps that refine the encoder's latents. 0: no refinement.
        learning_rate: Adam's peak learning rate.
        pixel_lambda: Weight of the mean squared error of pixels.
        perceptual_lambda: Weight of the perceptual distance, if its network is given.
        id_lambda: Weight of the identity loss, if an ArcFace is given.
        latent_lambda: Weight of the squared distance to the encoder's latents, summed over all
            entries; larger values give latents that are easier to edit.
        guide_resolution: Compare images at this lower resolution of the generator's skip output,
            for a fraction of the cost. None: full resolution.
    """

    steps: int = 100
    learning_rate: Number = 0.05
    pixel_lambda: Number = 1.0
    perceptual_lambda: Number = 0.8
    id_lambda: Number = 0.1
    latent_lambda: Number = 1e-4
    guide_resolution: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            if isinstance(number, int | float) and not 0 <= number < float("inf"):
                raise InputError(f"{field.name} is {number}, expected a number of at least 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inversion:
    """The result of :func:`invert`.

    Attributes:
        latents: W+ latents.
        images: Their images (B, R, R, 3) in about [-1, 1].
        errors: One number per image, by name; see :func:`reconstruction_errors`.
        losses: (steps, B), the loss per image before every step.
    """

    latents: Float[Array, "batch layers w_dim"]
    images: Float[Array, "batch resolution resolution 3"]
    errors: dict[str, Float[Array, " batch"]]
    losses: Float[Array, "steps batch"]


class _Problem(NamedTuple):
    """Constants of all steps."""

    generator: Generator
    perceptual: Perceptual | None
    arcface: ArcFace | None
    targets: Float[Array, "batch height height 3"]
    features: Array | list[Array] | None
    identities: Float[Array, "batch features"] | None
    start: Float[Array, "batch rows w_dim"]
    noise: Float[Array, ""]
    key: PRNGKeyArray
    steps: Int[Array, ""]
    config: InvertConfig


class _State(NamedTuple):
    step: Int[Array, ""]
    latents: Float[Array, "batch rows w_dim"]
    optimizer: optax.OptState
    losses: Float[Array, "rows batch"]


def invert(
    generator: Generator,
    images: Float[Array, "batch resolution resolution 3"],
    encoder: E4E | None = None,
    config: InvertConfig = InvertConfig(),
    *,
    perceptual: Perceptual | None = None,
    arcface: ArcFace | None = None,
    key: PRNGKeyArray | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Inversion:
    """Finds latents of images.

    On accelerators the whole run is one compiled loop. On a CPU, where convolutions in such loops
    run on one thread, the host calls the compiled step. A batch may be sharded over devices.

    Args:
        generator: Synthesizes the images.
        images: Images in [-1, 1], aligned like the generator's training data, at its resolution.
        encoder: Predicts the start latents. None: start from the mean latent.
        config: The settings.
        perceptual: An LPIPS or a CLIP. None: only pixels are compared.
        arcface: Identity network, for faces.
        key: Key of the latent noise without an encoder. None: ``jax.random.key(0)``.
        on_progress: On a CPU, called after every step with the number of steps taken.

    Raises:
        InputError: The images have another resolution, or the encoder is for another generator.
        FloatingPointError: A loss is not finite.
    """
    architecture = generator.config
    resolution = architecture.resolution
    if images.ndim != 4 or images.shape[1:] != (resolution, resolution, 3):
        raise InputError(
            f"images have shape {images.shape}, expected (batch, {resolution}, {resolution}, 3) for"
            " this generator"
        )
    architecture.check_guide_resolution(config.guide_resolution)
    if encoder is None:
        latents = generator.mean_latents(len(images))[:, :1]
    else:
        latents = encode(generator, encoder, images)
    losses = jnp.zeros((0, len(images)))
    if config.steps:
        key = jax.random.key(0) if key is None else key
        deviation = 0.0 if encoder is not None else latent_deviation(generator)
        problem = _make_problem(
            generator, perceptual, arcface, images, latents, deviation, key, config
        )
        state = _refine(problem, config.steps, on_progress)
        latents, losses = state.latents, state.losses[: config.steps]
    latents = all_layers(generator, latents)
    synthesized = _synthesize(generator, latents)
    errors = reconstruction_errors(synthesized, images, perceptual, arcface)
    if not _are_finite(losses, synthesized):
        raise FloatingPointError("the inversion is not finite; use a lower learning_rate")
    return Inversion(latents, synthesized, errors, losses)


def encode(
    generator: Generator, encoder: E4E, images: Float[Array, "batch resolution resolution 3"]
) -> Float[Array, "batch layers w_dim"]:
    """Predicts latents with an encoder, in all its rounds.

    Raises:
        InputError: The encoder is for another generator.
    """
    check_encoder(generator, encoder)
    return _encode(generator, encoder, images)


def check_encoder(generator: Generator, encoder: E4E) -> None:
    """Raises InputError if the encoder is for another generator."""
    found = encoder.config.num_layers, encoder.config.w_dim
    expected = generator.num_layers, generator.config.w_dim
    if found != expected:
        raise InputError(
            f"the encoder is for another generator: it predicts {found[0]} latents of width"
            f" {found[1]}, expected {expected[0]} of width {expected[1]} for this generator of"
            f" {generator.config.resolution} pixels"
        )
    ours = np.asarray(generator.mean_w[...], np.float32)
    theirs = np.asarray(encoder.mean_latent[...], np.float32).mean(0)
    longer = max(np.linalg.norm(ours), np.linalg.norm(theirs))
    if np.linalg.norm(theirs) > 0 and np.linalg.norm(ours - theirs) > _SAME_MEAN * longer:
        raise InputError(
            "the encoder is for another generator: their mean latents differ; use the generator"
            " that it was trained for, which its file also contains"
        )


def encoder_pixels(
    images: Float[Array, "batch size size 3"], config: E4EConfig
) -> Float[Array, "batch {config.image_height} {config.image_width} 3"]:
    """The encoder's input from square images: only the middle rows if it is wider than high."""
    height = images.shape[1] * config.image_height // config.image_width
    top = (images.shape[1] - height) // 2
    return area_resize(images[:, top : top + height], config.image_height, config.image_width)


@jax.jit
def _encode(generator: Generator, encoder: E4E, images: Array) -> Array:
    config = encoder.config
    pixels = encoder_pixels(images, config)
    if config.in_channels == 3:
        return encoder(pixels)
    latents = jnp.broadcast_to(encoder.mean_latent[...], (len(images), *encoder.mean_latent.shape))
    for _ in range(config.rounds):
        answer = encoder_pixels(generator(latents), config)
        latents = encoder(jnp.concatenate([pixels, answer], axis=-1), latents)
    return latents


@jax.jit
def latent_deviation(generator: Generator) -> Float[Array, ""]:
    """The root mean squared distance of random latents ``w`` from the mean latent."""
    z = jax.random.normal(jax.random.key(0), (_DEVIATION_SAMPLES, generator.config.z_dim))
    distances = jnp.sum(jnp.square(generator.map(z)[:, 0] - generator.mean_w[...]), axis=-1)
    return jnp.sqrt(jnp.mean(distances))


@functools.partial(jax.jit, static_argnames=("guide_resolution",))
def _prepare(perceptual, arcface, images, guide_resolution):
    targets = images
    if guide_resolution is not None:
        targets = area_resize(images, guide_resolution, guide_resolution)
    features = None if perceptual is None else perceptual_features(perceptual, targets)
    identities = None if arcface is None else identity_features(arcface, targets)
    return targets, features, identities


def _make_problem(
    generator, perceptual, arcface, images, latents, deviation, key, config
) -> _Problem:
    targets, features, identities = _prepare(perceptual, arcface, images, config.guide_resolution)
    noise = jnp.asarray(_LATENT_NOISE * deviation, jnp.float32)
    return _Problem(
        generator,
        perceptual,
        arcface,
        targets,
        features,
        identities,
        latents,
        noise,
        key,
        jnp.asarray(config.steps, jnp.int32),
        # Without the static number of steps, so that runs of any length share a program.
        jax.tree.map(as_number, dataclasses.replace(config, steps=0)),
    )


def _refine(problem: _Problem, steps: int, on_progress: Callable[[int], object] | None) -> _State:
    latents = problem.start
    # Numbers that are where a step leaves them; elsewhere, the second step would be compiled again.
    zeros = jnp.zeros_like(latents[:, 0, 0])
    zero = jnp.sum(zeros).astype(jnp.int32)
    moments: Any = _ADAM.init(latents)
    state = _State(
        step=zero,
        latents=latents,
        optimizer=moments._replace(count=zero),
        losses=jnp.zeros((recorded_rows(steps), 1), jnp.float32) + zeros,
    )
    if jax.default_backend() != "cpu":
        return _run(problem, state)
    for step in range(steps):
        state = _step_from_host(problem, state)
        if on_progress:
            jax.block_until_ready(state)
            on_progress(step + 1)
    return state


@jax.jit
def _run(problem: _Problem, state: _State) -> _State:
    """All steps in one compiled loop."""
    return jax.lax.fori_loop(0, problem.steps, lambda _, state: _step(problem, state), state)


def _step(problem: _Problem, state: _State) -> _State:
    config = problem.config
    t = state.step / problem.steps
    noise = problem.noise * jnp.square(jnp.maximum(0, 1 - t / _NOISE_STEPS))
    key = jax.random.fold_in(problem.key, state.step)
    shifts = noise * jax.random.normal(key, state.latents.shape)

    def total(latents):
        losses = _losses(problem, latents + shifts)
        losses += config.latent_lambda * squared_distance(latents, problem.start)
        return losses.sum(), losses

    gradients, losses = jax.grad(total, has_aux=True)(state.latents)
    directions, optimizer = _ADAM.update(gradients, state.optimizer)
    steps: Any = directions
    rate = learning_rate_schedule(config.learning_rate, problem.steps)(state.step)
    return _State(
        step=state.step + 1,
        latents=state.latents - rate * steps,
        optimizer=optimizer,
        losses=state.losses.at[state.step].set(losses),
    )


_step_from_host = jax.jit(_step)


def _losses(problem: _Problem, latents: Array) -> Float[Array, " batch"]:
    config, generator = problem.config, problem.generator
    images = generator(all_layers(generator, latents), config.guide_resolution)
    losses = config.pixel_lambda * jnp.square(images - problem.targets).mean((1, 2, 3))
    if problem.perceptual is not None and problem.features is not None:
        features = perceptual_features(problem.perceptual, images)
        distances = perceptual_distance(problem.perceptual, features, problem.features)
        losses += config.perceptual_lambda * distances
    if problem.arcface is not None and problem.identities is not None:
        identities = identity_features(problem.arcface, images)
        losses += config.id_lambda * identity_loss(identities, problem.identities)
    return losses


@jax.jit
def _are_finite(losses: Array, images: Array) -> Array:
    return jnp.isfinite(losses).all() & jnp.isfinite(images).all()


@jax.jit
def _synthesize(generator: Generator, latents: Array) -> Array:
    return generator(latents)


@jax.jit
def reconstruction_errors(
    images: Float[Array, "batch size size 3"],
    originals: Float[Array, "batch size size 3"],
    perceptual: Perceptual | None = None,
    arcface: ArcFace | None = None,
) -> dict[str, Float[Array, " batch"]]:
    """Errors of reconstructed images, all in [-1, 1].

    Returns:
        One number per image: ``mse`` of the clipped images, ``psnr`` in dB, and, if their networks
        are given, ``lpips`` or ``clip_distance``, and ``identity_similarity``.
    """
    images = jnp.clip(images, -1, 1)
    mse = jnp.square(images - originals).mean((1, 2, 3))
    # The range of the pixels is 2.
    errors = {"mse": mse, "psnr": 10 * jnp.log10(4 / jnp.maximum(mse, _LEAST_ERROR))}
    if perceptual is not None:
        name = "lpips" if isinstance(perceptual, LPIPS) else "clip_distance"
        errors[name] = perceptual_distance(
            perceptual,
            perceptual_features(perceptual, images),
            perceptual_features(perceptual, originals),
        )
    if arcface is not None:
        errors["identity_similarity"] = 1 - identity_loss(
            identity_features(arcface, images), identity_features(arcface, originals)
        )
    return errors
