"""Arrays of a model that are not trained."""

from typing import Any, TypeVar

import jax
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)


class Buffer(nnx.Variable):
    """Saved with a model but never trained: fixed noise, a mean latent, stored statistics.

    Its gradient is zero, so that an optimizer that gets the gradient of a whole model leaves it as
    it is. Weight decay needs :func:`parameter_mask` for that.
    """

    def __getitem__(self, key: Any) -> jax.Array:
        return jax.lax.stop_gradient(super().__getitem__(key))


def parameter_mask(model: Model) -> Model:
    """Marks what is trained in a model, for example ``optax.adamw(1e-3, mask=parameter_mask)``.

    Returns:
        The model, or a tree of its structure, with True for every parameter and False for every
        buffer in the place of its array.
    """
    return jax.tree.map(
        lambda variable: isinstance(variable, nnx.Param),
        model,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
