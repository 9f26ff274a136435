"""Settings of edits, from which the scripts reproduce the images."""

import dataclasses
from typing import Any, ClassVar, Literal

from styleclip_jax.avatars import AVATARS_CONFIG, AVATARS_NEUTRAL
from styleclip_jax.methods.optimization import OptimizeConfig

# An instant edit is computed by the mapper for any text or by directions.
InstantMethod = Literal["any_text", "directions"]


@dataclasses.dataclass(frozen=True)
class Instant:
    """An edit with any text in one forward pass.

    Attributes:
        text: Describes the edited image.
        neutral: Describes both the original and the edited image.
        strength: Strength of the edit. None: CLIP chooses the best one for the image.
        threshold: ``threshold`` of :func:`styleclip_jax.edit_with_direction`, or ``min_change`` of
            :func:`styleclip_jax.edit_with_delta_mapper`. None: the default.
        using: The method that computes the edit.
    """

    text: str
    neutral: str = AVATARS_NEUTRAL
    strength: float | None = None
    threshold: float | None = None
    using: InstantMethod = "any_text"

    @property
    def script(self) -> str:
        """The script that reproduces the edit."""
        return "apply_mapper.py" if self.using == "any_text" else "directions.py"

    def flags(self) -> dict[str, Any]:
        """Returns the script's flags except the mapper; strength and threshold must be known."""
        threshold = "min_change" if self.using == "any_text" else "threshold"
        return {
            "description": [self.text],
            "neutral": self.neutral,
            "strength": [self.strength],
            threshold: self.threshold,
        }


@dataclasses.dataclass(frozen=True)
class Mapped:
    """An edit with a mapper that was trained for one text.

    Attributes:
        mapper: The mapper's name.
        strength: Strength of the edit. None: the strength that the mapper was trained with.
    """

    script: ClassVar[str] = "apply_mapper.py"
    mapper: str
    strength: float | None = None

    @property
    def text(self) -> str:
        """A title of the edit."""
        return self.mapper.replace("_", " ")

    def flags(self) -> dict[str, Any]:
        """Returns the script's flags."""
        return {"mapper": [self.mapper], "strength": [self.strength]}


@dataclasses.dataclass(frozen=True)
class Optimized:
    """An edit by gradient descent.

    Attributes:
        text: Describes the edited image.
        neutral: Describes both the original and the edited image.
        keep: Texts that must fit the edited image as well as the original.
        steps: Maximum number of steps.
        hold: Weight of all changes that the text does not describe, ``orthogonal_lambda``.
        patience: Number of steps without improvement after which to stop. 0: never.
        seed: Seed of the random views.
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
        """Returns the settings of the optimization."""
        return dataclasses.replace(
            defaults, steps=self.steps, orthogonal_lambda=self.hold, patience=self.patience
        )

    def flags(self) -> dict[str, Any]:
        """Returns the script's flags."""
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
