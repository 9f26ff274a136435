"""One mapper for any text: DeltaEdit (Lyu et al., CVPR 2023, arXiv 2303.06285, section 3.3).

The mapper predicts a change of an image's styles from these styles, the image's CLIP features and a
direction between CLIP features. It is trained on pairs of images, without texts; at inference, the
direction between two texts replaces the direction between two images.

The styles form three groups: layers at 4 and 8 pixels (coarse), at 16 and 32 pixels (medium), and
the rest (fine). By default the styles of ToRGB layers do not change, as in the official
``delta_mapper.py``.

Parameter tree; every ``Network`` is as in ``models/mapper.py``::

    coarse, medium, fine
        style: Network       (official: sm_coarse.mapping.1 to .4, and so on)
        condition: Network   (official: cm_coarse.mapping.1 to .4)
        fusion: Network      (official: fm_coarse.mapping.0 to .3, without a pixel norm)
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError, check_choices
from styleclip_jax.models.card import MapperCard
from styleclip_jax.models.clip import Preprocess
from styleclip_jax.models.mapper import MAX_LAYERS, Network, check_styles
from styleclip_jax.models.stylegan2 import StyleSpace, conv_entries

# Entries of StyleSpace.
DELTA_GROUPS = {"coarse": slice(0, 5), "medium": slice(5, 11), "fine": slice(11, None)}


@dataclasses.dataclass(frozen=True)
class DeltaMapperConfig:
    """Architecture of a :class:`DeltaMapper`; the defaults are the official ones.

    Attributes:
        style_dims: Lengths of all StyleSpace entries, ToRGB included.
        embed_dim: Length of CLIP's features.
        rgb: Whether the styles of ToRGB layers change too. Needed for generators that set colors in
            these layers, such as the avatars.
        preprocess: See :func:`styleclip_jax.losses.clip_pixels`.
        width: Features of the hidden layers. None: as many as the group's output.
        depth: Linear layers of each network.
        lr_multiplier: Factor of the networks' equalized learning rate.
        card: The mapper's model card.
    """

    style_dims: Sequence[int]
    embed_dim: int = 512
    rgb: bool = False
    preprocess: Preprocess = "styleclip"
    width: int | None = None
    depth: int = 4
    lr_multiplier: float = 0.01
    # Not compared, so that mappers of all texts share a compiled program.
    card: MapperCard = dataclasses.field(default=MapperCard(strength=1.0), compare=False)

    def __post_init__(self) -> None:
        # JSON has no tuples, but the configuration must be hashable.
        object.__setattr__(self, "style_dims", tuple(self.style_dims))
        for name in ("embed_dim", "depth", "width"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1")
        if max(self.depth, len(self.style_dims)) > MAX_LAYERS:
            raise ValueError(
                f"depth is {self.depth} and there are {len(self.style_dims)} style_dims, expected"
                f" at most {MAX_LAYERS} each"
            )
        if min(self.style_dims, default=0) < 1:
            raise ValueError(f"style_dims are {self.style_dims}, expected at least 1 each")
        check_choices(self, preprocess=Preprocess)
        if not 0 < self.lr_multiplier < math.inf:
            raise ValueError(f"lr_multiplier is {self.lr_multiplier}, expected a positive number")

    @property
    def changed(self) -> tuple[int, ...]:
        """Positions of the StyleSpace entries that the mapper changes."""
        convs = conv_entries(self.style_dims)
        return tuple(range(len(self.style_dims))) if self.rgb else convs

    def group(self, name: str) -> tuple[int, ...]:
        """Positions of the entries of one group that the mapper changes."""
        members = range(len(self.style_dims))[DELTA_GROUPS[name]]
        return tuple(i for i in self.changed if i in members)


class DeltaGroup(nnx.Module):
    """The networks of one group.

    Layers of one width share their networks, as the official coarse and medium groups do; layers of
    different widths are concatenated, as in the official fine group.
    """

    def __init__(self, dims: Sequence[int], config: DeltaMapperConfig, *, rngs: nnx.Rngs):
        self.dims = tuple(dims)
        self.shared = len(set(self.dims)) == 1
        features = self.dims[0] if self.shared else sum(self.dims)
        width = config.width or features

        def network(inputs: int, outputs: int, *, normalize: bool = True) -> Network:
            return Network(
                [inputs, *[width] * (config.depth - 1), outputs],
                lr_multiplier=config.lr_multiplier,
                normalize=normalize,
                rngs=rngs,
            )

        self.style = network(features, width)
        self.condition = network(2 * config.embed_dim, width)
        self.fusion = network(2 * width, features, normalize=False)

    def __call__(self, styles: StyleSpace, condition: Float[Array, "batch inputs"]) -> StyleSpace:
        if self.shared:
            # (batch, layers, channels): the pixel norm is over the layers.
            hidden = self.style(jnp.stack(styles, axis=1))
        else:
            hidden = self.style(jnp.concatenate(styles, axis=-1))
        condition = self.condition(condition)
        if self.shared:
            condition = jnp.broadcast_to(condition[:, None], hidden.shape)
        residual = self.fusion(jnp.concatenate([hidden, condition], axis=-1))
        if self.shared:
            return tuple(residual[:, i] for i in range(len(self.dims)))
        ends = [sum(self.dims[: i + 1]) for i in range(len(self.dims) - 1)]
        return tuple(jnp.split(residual, ends, axis=-1))


class DeltaMapper(nnx.Module):
    """Predicts the change of styles for a direction in CLIP's embedding space.

    Args:
        config: The architecture.
        rngs: Rngs of the initial weights.
        dtype: Ignored: a mapper is small and computes in float32.
    """

    space: ClassVar[str] = "stylespace"

    def __init__(
        self, config: DeltaMapperConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        del dtype
        self.config = config

        def group(name: str) -> DeltaGroup | None:
            dims = [config.style_dims[i] for i in config.group(name)]
            return DeltaGroup(dims, config, rngs=rngs) if dims else None

        self.coarse = group("coarse")
        self.medium = group("medium")
        self.fine = group("fine")

    def __call__(
        self,
        styles: StyleSpace,
        features: Float[Array, "batch embed_dim"],
        direction: Float[Array, "batch embed_dim"],
    ) -> StyleSpace:
        """Returns the residual, to be added to ``styles``; zero for entries that do not change.

        Args:
            styles: Styles of the images.
            features: Unit CLIP features of the images.
            direction: Unit direction of the edit in CLIP's embedding space.

        Raises:
            InputError: The styles or features do not match the mapper.
        """
        check_styles(styles, self.config.style_dims)
        for name, x in {"features": features, "direction": direction}.items():
            expected = (len(styles[0]), self.config.embed_dim)
            if x.shape != expected:
                raise InputError(
                    f"{name} has shape {x.shape}, expected {expected} for this mapper; use the CLIP"
                    " that it was trained with"
                )
        condition = jnp.concatenate([features, direction], axis=-1)
        residuals = [jnp.zeros_like(style) for style in styles]
        for name in DELTA_GROUPS:
            group, entries = getattr(self, name), self.config.group(name)
            if group is not None:
                changes = group(tuple(styles[i] for i in entries), condition)
                for i, change in zip(entries, changes, strict=True):
                    residuals[i] = change
        return tuple(residuals)
