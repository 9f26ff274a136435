"""The latent mappers of StyleCLIP: networks that predict the change of latents for one text.

Patashnik et al., arXiv 2103.17249, section 5; the official file is ``mapper/latent_mappers.py``.

Parameter trees; every ``Network`` is ``layers[0..3].kernel (in, out)`` and ``layers[0..3].bias
(out,)``, raw as in the official files (``mapping.1`` to ``mapping.4`` there, kernels transposed)::

    LevelsMapper                    coarse: Network   medium: Network   fine: Network
                                    (official: course_mapping, medium_mapping, fine_mapping;
                                    None for a group that is left out)
    SingleMapper                    network: Network                         (official: mapping)
    FullStyleSpaceMapper            networks[c]: Network                     (official: mapper_{c})
    WithoutToRGBStyleSpaceMapper    networks[c]: Network, None at the ToRGB entries
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.models.card import MapperCard
from styleclip_jax.models.stylegan2 import (
    EqualizedLinear,
    StyleSpace,
    inverse_leaky_relu,
    leaky_relu,
)

LEVELS = {"coarse": slice(0, 4), "medium": slice(4, 8), "fine": slice(8, None)}


# A limit, so that a damaged configuration does not allocate modules without end.
MAX_LAYERS = 64


@dataclasses.dataclass(frozen=True)
class MapperConfig:
    """Shape of the latents that a mapper changes; the defaults fit the official 1024 px generator.

    Attributes:
        w_dim: Length of a w vector.
        num_layers: Number of w vectors in a W+ latent.
        style_dims: Lengths of the StyleSpace entries; only for the StyleSpace mappers.
        coarse: Whether ``LevelsMapper`` changes layers 0 to 3.
        medium: Whether ``LevelsMapper`` changes layers 4 to 7.
        fine: Whether ``LevelsMapper`` changes layers 8 and up.
        depth: Linear layers of each network.
        lr_multiplier: Factor of the networks' equalized learning rate.
        card: The mapper's model card.
    """

    w_dim: int = 512
    num_layers: int = 18
    style_dims: Sequence[int] = ()
    coarse: bool = True
    medium: bool = True
    fine: bool = True
    depth: int = 4
    lr_multiplier: float = 0.01
    # Not compared, so that mappers of all texts share a compiled program.
    card: MapperCard = dataclasses.field(default=MapperCard(), compare=False)

    def __post_init__(self) -> None:
        # JSON has no tuples, but the configuration must be hashable.
        object.__setattr__(self, "style_dims", tuple(self.style_dims))
        for name in ("w_dim", "num_layers", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if max(self.depth, len(self.style_dims)) > MAX_LAYERS:
            raise ValueError(
                f"depth is {self.depth} and there are {len(self.style_dims)} style_dims, expected"
                f" at most {MAX_LAYERS} each"
            )
        if min(self.style_dims, default=1) < 1:
            raise ValueError(f"style_dims are {self.style_dims}, expected at least 1 each")
        if not 0 < self.lr_multiplier < math.inf:
            raise ValueError(f"lr_multiplier is {self.lr_multiplier}, expected a positive number")


class Network(nnx.Module):
    """Pixel norm over axis 1, then equalized linear layers with leaky ReLU.

    Args:
        widths: Features of the input and of every layer's output.
        lr_multiplier: Factor of the equalized learning rate.
        normalize: Whether there is a pixel norm.
        rngs: Rngs of the initial weights.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        lr_multiplier: float,
        normalize: bool = True,
        rngs: nnx.Rngs,
    ):
        self.normalize = normalize
        self.layers = nnx.List(
            EqualizedLinear(inputs, outputs, lr_multiplier=lr_multiplier, rngs=rngs)
            for inputs, outputs in itertools.pairwise(widths)
        )

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        if self.normalize:
            # Axis 1 of a W+ latent is its layers, not its features. Published mappers were trained
            # this way (PixelNorm in models/stylegan2/model.py).
            x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=1, keepdims=True) + 1e-8)
        for layer in self.layers:
            x = leaky_relu(layer(x))
        return x


def _square_network(features: int, config: MapperConfig, *, rngs: nnx.Rngs) -> Network:
    widths = [features] * (config.depth + 1)
    return Network(widths, lr_multiplier=config.lr_multiplier, rngs=rngs)


class LevelsMapper(nnx.Module):
    """One network each for the coarse, medium and fine layers of a W+ latent.

    Args:
        config: Shape of the latents; disabled groups have no parameters and a zero residual.
        rngs: Rngs of the initial weights.
        dtype: Ignored: a mapper is small and computes in float32.

    Raises:
        InputError: All groups are disabled.
    """

    space: ClassVar[str] = "w_plus"

    def __init__(self, config: MapperConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        del dtype
        self.config = config

        def network(level: str) -> Network | None:
            used = getattr(config, level) and LEVELS[level].start < config.num_layers
            return _square_network(config.w_dim, config, rngs=rngs) if used else None

        self.coarse = network("coarse")
        self.medium = network("medium")
        self.fine = network("fine")
        if self.coarse is self.medium is self.fine is None:
            raise InputError(
                f"a mapper for {config.num_layers} layers has no coarse, medium or fine group,"
                " expected at least one; enable a group"
            )

    def __call__(
        self, w_plus: Float[Array, "batch layers w_dim"]
    ) -> Float[Array, "batch layers w_dim"]:
        """Returns the residual, to be scaled and added to ``w_plus``.

        Raises:
            InputError: The latents do not match the mapper.
        """
        _check_w_plus(w_plus, self.config)
        residuals = []
        for name, layers in LEVELS.items():
            network = getattr(self, name)
            group = w_plus[:, layers]
            residuals.append(jnp.zeros_like(group) if network is None else network(group))
        return jnp.concatenate(residuals, axis=1)


class SingleMapper(nnx.Module):
    """One network for all layers of a W+ latent; arguments as for ``LevelsMapper``."""

    space: ClassVar[str] = "w_plus"

    def __init__(self, config: MapperConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        del dtype
        self.config = config
        self.network = _square_network(config.w_dim, config, rngs=rngs)

    def __call__(
        self, w_plus: Float[Array, "batch layers w_dim"]
    ) -> Float[Array, "batch layers w_dim"]:
        """Returns the residual, to be scaled and added to ``w_plus``.

        Raises:
            InputError: The latents do not match the mapper.
        """
        _check_w_plus(w_plus, self.config)
        return self.network(w_plus)


class FullStyleSpaceMapper(nnx.Module):
    """One network for each entry of StyleSpace; arguments as for ``LevelsMapper``."""

    space: ClassVar[str] = "stylespace"

    def __init__(self, config: MapperConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        del dtype
        self.config = config
        self.networks = nnx.List(
            [
                _square_network(dim, config, rngs=rngs) if self._is_changed(c) else None
                for c, dim in enumerate(config.style_dims)
            ]
        )

    def _is_changed(self, entry: int) -> bool:
        del entry
        return True

    def __call__(self, styles: StyleSpace) -> StyleSpace:
        """Returns the residual of every StyleSpace entry, to be scaled and added.

        Raises:
            InputError: The latents do not match the mapper.
        """
        check_styles(styles, self.config.style_dims)
        return tuple(
            jnp.zeros_like(style) if network is None else network(style)
            for style, network in zip(styles, self.networks, strict=True)
        )


class WithoutToRGBStyleSpaceMapper(FullStyleSpaceMapper):
    """One network for each StyleSpace entry except the ToRGB ones, whose residual is zero."""

    def _is_changed(self, entry: int) -> bool:
        # The order is: first convolution, first ToRGB, then (up, convolution, ToRGB) repeated.
        return entry % 3 != 1


Mapper = LevelsMapper | SingleMapper | FullStyleSpaceMapper | WithoutToRGBStyleSpaceMapper

MAPPER_TYPES: dict[str, type[Mapper]] = {
    mapper_type.__name__: mapper_type
    for mapper_type in (
        LevelsMapper,
        SingleMapper,
        FullStyleSpaceMapper,
        WithoutToRGBStyleSpaceMapper,
    )
}


@jax.jit
def start_at(
    mapper: Mapper, residual: Float[Array, "layers w_dim"] | tuple[Float[Array, " _"], ...]
) -> Mapper:
    """A copy of a mapper with random weights whose residuals are around a given one.

    Sets the last bias of every network. The random weights still contribute, but little if the
    residual is large, as for a residual that is multiplied by a strength like 0.1.

    Args:
        mapper: The mapper.
        residual: The residual of one image, equal in all layers of W+ that share a network:
            W+ (L, w_dim) or StyleSpace entries (n,).
    """
    # Inside of `jit`, the mapper is already a copy.
    if isinstance(mapper, LevelsMapper):
        pairs = [(getattr(mapper, name), residual[rows]) for name, rows in LEVELS.items()]
        pairs = [(network, rows[0]) for network, rows in pairs if network is not None]
    elif isinstance(mapper, SingleMapper):
        pairs = [(mapper.network, residual[0])]
    else:
        pairs = zip(mapper.networks, residual, strict=True)
        pairs = [(network, entry) for network, entry in pairs if network is not None]
    for network, output in pairs:
        last = network.layers[-1]
        last.bias[...] = inverse_leaky_relu(output) / last.lr_multiplier
    return mapper


def _check_w_plus(latents: Array, config: MapperConfig) -> None:
    expected = (config.num_layers, config.w_dim)
    if latents.ndim != 3 or latents.shape[1:] != expected:
        raise InputError(
            f"latents have shape {latents.shape}, expected (batch, {expected[0]}, {expected[1]})"
            " for this mapper; use the generator that it was trained with"
        )


def check_styles(latents: StyleSpace, expected: Sequence[int]) -> None:
    """Raises InputError if styles do not have a mapper's widths."""
    widths = tuple(style.shape[-1] for style in latents)
    if widths != tuple(expected):
        raise InputError(
            f"latents are {len(widths)} StyleSpace arrays of widths {widths}, expected"
            f" {len(expected)} of widths {tuple(expected)} for this mapper; use the generator that"
            " it was trained with"
        )
