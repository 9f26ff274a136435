"""What a mapper is, beside its architecture and parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class MapperCard:
    """What a mapper was trained for, and with what; every mapper's checkpoint has one.

    Attributes:
        text: The text that it learned. None: any text, or unknown.
        strength: The factor of its output in training, with which it is applied by default.
        generator: Fingerprint of its generator, :func:`styleclip_jax.fingerprint`. None: unknown.
        settings: Settings of its training, by name.
        versions: Versions of the libraries that trained it.
        date: The day of its training, such as 2026-11-24.
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
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected names and values")
