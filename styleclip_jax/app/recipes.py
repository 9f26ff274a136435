"""How a picture was edited: settings that a script turns into the same picture."""

import dataclasses
from typing import Any, ClassVar

from styleclip_jax.methods.optimization import AVATARS_CONFIG, AVATARS_NEUTRAL, OptimizeConfig

# The file beside the settings that holds the latents of the picture before the edit, without its
# ending.
START = "start"


@dataclasses.dataclass(frozen=True)
class Instant:
    """An edit along the direction of a text.

    Attributes:
        text: What the image should show.
        neutral: What it shows anyway.
        strength: See :func:`styleclip_jax.edit_with_direction`; None: the best one for the image,
            as CLIP sees it.
        threshold: Likewise; None: automatic.
    """

    script: ClassVar[str] = "directions.py"
    text: str
    neutral: str = AVATARS_NEUTRAL
    strength: float | None = None
    threshold: float | None = None

    def flags(self) -> dict[str, Any]:
        """The flags of the script, of an edit whose strength and threshold are known."""
        return {
            "description": [self.text],
            "neutral": self.neutral,
            "strength": [self.strength],
            "threshold": self.threshold,
        }


@dataclasses.dataclass(frozen=True)
class Mapped:
    """An edit by a mapper that was trained for one text."""

    script: ClassVar[str] = "apply_mapper.py"
    mapper: str
    strength: float = 0.1

    @property
    def text(self) -> str:
        """A title."""
        return self.mapper.replace("_", " ")

    def flags(self) -> dict[str, Any]:
        """The flags of the script."""
        return {"mapper": [self.mapper], "strength": [self.strength]}


@dataclasses.dataclass(frozen=True)
class Optimized:
    """An edit by gradient descent.

    Attributes:
        text: What the image should show.
        neutral: What it shows anyway.
        keep: Texts that must fit as well as before.
        steps: The most steps.
        hold: How firmly the rest of the image is held: ``orthogonal_lambda``.
        patience: Steps without an improvement after which it stops; 0: never.
        seed: Decides the random views.
    """

    script: ClassVar[str] = "optimize.py"
    text: str
    neutral: str = AVATARS_NEUTRAL
    keep: tuple[str, ...] = ()
    steps: int = AVATARS_CONFIG.steps
    hold: float = 0.35
    patience: int = 0
    seed: int = 0

    def config(self, defaults: OptimizeConfig) -> OptimizeConfig:
        """The settings of the optimization."""
        return dataclasses.replace(
            defaults, steps=self.steps, orthogonal_lambda=self.hold, patience=self.patience
        )

    def flags(self) -> dict[str, Any]:
        """The flags of the script."""
        return {
            "description": [self.text],
            "neutral": self.neutral,
            **({"keep": list(self.keep)} if self.keep else {}),
            "steps": self.steps,
            "orthogonal_lambda": self.hold,
            "patience": self.patience,
            "seed": self.seed,
        }


Recipe = Instant | Mapped | Optimized
