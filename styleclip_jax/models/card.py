"""The model card of a mapper: its text, strength, generator and training."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class MapperCard:
    """Describes a mapper and its training; stored in every mapper's checkpoint.

    Attributes:
        text: The text that the mapper learned. None: any text, or unknown.
        strength: Factor of the mapper's output in training, and the default when it is applied.
        generator: Fingerprint of the generator, :func:`styleclip_jax.fingerprint`. None: unknown.
        settings: Training settings by name.
        versions: Versions of the libraries in training.
        date: Day of the training, such as 2026-11-24.
    """

    text: str | None = None
    strength: float = 0.1
    generator: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.strength, int | float):
            raise ValueError(f"strength is {self.strength!r}, expected a number")
        for name in ("settings", "versions"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected values by name")
