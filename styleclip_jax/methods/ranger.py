"""Ranger: rectified Adam with gradient centralization and Lookahead, as optax transformations.

The reference is the official file ``mapper/training/ranger.py`` (version 20.4.11). The parts are
implemented here because their counterparts in optax differ: ``optax.centralize`` centers kernels of
PyTorch's (out, in) layout, ``optax.scale_by_radam`` adds epsilon to the square root after the bias
correction, where 1e-5 has up to 13 times less effect, and ``optax.lookahead`` doubles the
parameters instead of keeping the slow ones in its state.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int


def ranger(
    learning_rate: float,
    b1: float = 0.95,
    b2: float = 0.999,
    eps: float = 1e-5,
    sync_period: int = 6,
    slow_step_size: float = 0.5,
) -> optax.GradientTransformation:
    """The Ranger optimizer; the defaults are the official ones.

    Args:
        learning_rate: Step size of the fast weights.
        b1: Decay rate of the gradients' moving average.
        b2: Decay rate of the squared gradients' moving average.
        eps: Added to the denominator.
        sync_period: Steps between updates of the slow weights (k).
        slow_step_size: Fraction by which the slow weights move towards the fast ones (alpha).

    Returns:
        A transformation whose ``update`` needs the parameters.
    """
    return optax.chain(
        centralize_gradients(),
        scale_by_rectified_adam(b1, b2, eps),
        optax.scale_by_learning_rate(learning_rate),
        lookahead(sync_period, slow_step_size),
    )


def centralize_gradients() -> optax.GradientTransformation:
    """Gradient centralization (Yong et al., arXiv 2004.01461) for kernels with outputs last.

    Each output's gradients are shifted to mean zero; vectors (biases) are unchanged.
    """

    def center(gradient: Array) -> Array:
        if gradient.ndim < 2:
            return gradient
        return gradient - gradient.mean(tuple(range(gradient.ndim - 1)), keepdims=True)

    return optax.stateless(lambda updates, _: jax.tree.map(center, updates))


class RectifiedAdamState(NamedTuple):
    """Steps taken and the moving averages of gradients and squared gradients."""

    step: Int[Array, ""]
    mean: optax.Updates
    square: optax.Updates


def scale_by_rectified_adam(
    b1: float, b2: float, eps: float, threshold: float = 5.0
) -> optax.GradientTransformation:
    """RAdam (Liu et al., arXiv 1908.03265) with epsilon added to the uncorrected second moment.

    Until the length of the approximated moving average exceeds ``threshold``, updates are the
    bias-corrected mean of the gradients, without a denominator.

    Args:
        b1: Decay rate of the gradients' moving average.
        b2: Decay rate of the squared gradients' moving average.
        eps: Added to the denominator.
        threshold: ``N_sma_threshhold`` of the official file.
    """
    # Tabulated in float64: in float32 the moving average's length at step 6 would be the
    # difference of two numbers near 2000. The table ends where b2**t no longer matters.
    t = np.arange(1, math.ceil(math.log(1e-9) / math.log(b2)))
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * t * b2**t / (1 - b2**t)
    rectified = length > threshold
    safe = np.where(rectified, length, longest)
    rectification = (safe - 4) / (longest - 4) * (safe - 2) / safe * longest / (longest - 2)
    scale = np.where(rectified, np.sqrt((1 - b2**t) * rectification), 1.0) / (1 - b1**t)
    scales = scale.astype(np.float32)
    warmup_steps = int(np.argmax(rectified))

    def init(params: optax.Params) -> RectifiedAdamState:
        # Two trees, because a buffer cannot be donated twice.
        mean, square = optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        return RectifiedAdamState(jnp.zeros((), jnp.int32), mean, square)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RectifiedAdamState]:
        del params
        mean = optax.tree.update_moment(updates, state.mean, b1, 1)
        square = optax.tree.update_moment(updates, state.square, b2, 2)
        step_size = jnp.asarray(scales)[jnp.minimum(state.step, len(scales) - 1)]
        adaptive = state.step >= warmup_steps

        def rescale(m: Array, v: Array) -> Array:
            return step_size * m / jnp.where(adaptive, jnp.sqrt(v) + eps, 1.0)

        rescaled = jax.tree.map(rescale, mean, square)
        return rescaled, RectifiedAdamState(state.step + 1, mean, square)

    return optax.GradientTransformation(init, update)


class LookaheadState(NamedTuple):
    """Steps taken and the slow weights."""

    step: Int[Array, ""]
    slow: optax.Params


def lookahead(sync_period: int, slow_step_size: float) -> optax.GradientTransformation:
    """Lookahead (Zhang et al., arXiv 1907.08610) with the slow weights as optimizer state.

    Args:
        sync_period: Steps between updates of the slow weights, which then replace the fast ones.
        slow_step_size: Fraction by which they move towards the fast ones, from 0 to 1.
    """

    def init(params: optax.Params) -> LookaheadState:
        return LookaheadState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, LookaheadState]:
        step = state.step + 1
        sync = step % sync_period == 0

        def move(slow: Array, fast: Array, u: Array) -> Array:
            return jnp.where(sync, slow + slow_step_size * (fast + u - slow), slow)

        slow = jax.tree.map(move, state.slow, params, updates)
        updates = jax.tree.map(lambda s, p, u: jnp.where(sync, s - p, u), slow, params, updates)
        return updates, LookaheadState(step, slow)

    return optax.GradientTransformation(init, update)
