"""Model arrays that are not trained."""

from typing import Any, TypeVar

import jax
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)


class Buffer(nnx.Variable):
    """An array saved with a model but not trained: fixed noise, a mean latent, stored statistics.

    Its gradient is zero, so an optimizer on a whole model does not change it. Optimizers with
    weight decay also need :func:`parameter_mask`.
    """

    def __getitem__(self, key: Any) -> jax.Array:
        return jax.lax.stop_gradient(super().__getitem__(key))


def parameter_mask(model: Model) -> Model:
    """Marks the trained arrays of a model, for example ``optax.adamw(1e-3, mask=parameter_mask)``.

    Returns:
        A tree with the structure of the model: True for every parameter, False for every buffer.
    """
    return jax.tree.map(
        lambda variable: isinstance(variable, nnx.Param),
        model,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
