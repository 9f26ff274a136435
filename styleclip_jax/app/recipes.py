"""Settings of an edit, from which a script reproduces the image."""

import dataclasses
from typing import Any, ClassVar, Literal

from styleclip_jax.avatars import AVATARS_CONFIG, AVATARS_NEUTRAL
from styleclip_jax.methods.optimization import OptimizeConfig

# The file with the latents before the edit, next to the settings, without its suffix.
START = "start"

# What computes an instant edit: the mapper for any text, or directions.
Using = Literal["any_text", "directions"]


@dataclasses.dataclass(frozen=True)
class Instant:
    """An edit with any text in one forward pass.

    Attributes:
        text: What the image should show.
        neutral: What it shows before and after the edit.
        strength: Strength of the edit. None: the best one for the image, chosen by CLIP.
        threshold: ``threshold`` of :func:`styleclip_jax.edit_with_direction`, or ``min_change`` of
            :func:`styleclip_jax.edit_with_delta_mapper`. None: the default.
        using: What computes the edit.
    """

    text: str
    neutral: str = AVATARS_NEUTRAL
    strength: float | None = None
    threshold: float | None = None
    using: Using = "any_text"

    @property
    def script(self) -> str:
        """The script that reproduces the edit."""
        return "apply_mapper.py" if self.using == "any_text" else "directions.py"

    def flags(self) -> dict[str, Any]:
        """The flags of the script except the mapper; strength and threshold must be known."""
        threshold = "min_change" if self.using == "any_text" else "threshold"
        return {
            "description": [self.text],
            "neutral": self.neutral,
            "strength": [self.strength],
            threshold: self.threshold,
        }


@dataclasses.dataclass(frozen=True)
class Mapped:
    """An edit by a mapper that was trained for one text.

    Attributes:
        mapper: Its name.
        strength: Strength of the edit. None: the one that the mapper was trained with.
    """

    script: ClassVar[str] = "apply_mapper.py"
    mapper: str
    strength: float | None = None

    @property
    def text(self) -> str:
        """A title of the edit."""
        return self.mapper.replace("_", " ")

    def flags(self) -> dict[str, Any]:
        """The flags of the script."""
        return {"mapper": [self.mapper], "strength": [self.strength]}


@dataclasses.dataclass(frozen=True)
class Optimized:
    """An edit by gradient descent.

    Attributes:
        text: What the image should show.
        neutral: What it shows before and after the edit.
        keep: Texts that must fit the image as well as before.
        steps: Maximum number of steps.
        hold: Weight of other changes, ``orthogonal_lambda``.
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
