"""Training of the avatars models: the learning-rate schedule and a resumable loop."""

import time
from collections.abc import Callable
from typing import TypeVar

import jax
import optax
import orbax.checkpoint as ocp
from jaxtyping import Array

State = TypeVar("State")

SECONDS_BETWEEN_CHECKPOINTS = 180


def learning_rate_schedule(peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up over 1 % of the steps, then a cosine to zero."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, steps // 100, steps)


def train(
    state: State,
    steps: int,
    step_fn: Callable[[State, int], tuple[State, float]],
    manager: ocp.CheckpointManager,
    name: str,
) -> State:
    """Runs `state, loss = step_fn(state, step)` to `steps`, resuming from the last checkpoint."""

    # Orbax cannot restore trees whose keys mix names and numbers, such as states of modules.
    def numbered(state: State) -> dict[str, Array]:
        return {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}

    start = manager.latest_step() or 0
    if start:
        leaves = manager.restore(start, args=ocp.args.StandardRestore(numbered(state)))
        state = jax.tree.unflatten(jax.tree.structure(state), [leaves[i] for i in sorted(leaves)])
    saved = began = time.time()
    for step in range(start, steps):
        state, loss = step_fn(state, step)
        if (step + 1) % 100 == 0:
            rate = (step + 1 - start) / (time.time() - began)
            print(f"{name} {step + 1}/{steps} loss {float(loss):.4f} {rate:.2f} it/s", flush=True)
        if time.time() - saved > SECONDS_BETWEEN_CHECKPOINTS or step + 1 == steps:
            manager.save(step + 1, args=ocp.args.StandardSave(numbered(state)))
            saved = time.time()
    manager.wait_until_finished()
    return state
