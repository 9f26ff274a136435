"""Images of the page, their edits, and the progress of an edit."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from styleclip_jax.app.photos import Photo, Pixels
from styleclip_jax.app.recipes import Recipe

HostStyles = tuple[Float[np.ndarray, "1 _"], ...]
# The latents of one image, in W+ or StyleSpace.
HostLatents = Float[np.ndarray, "1 layers w_dim"] | HostStyles


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """An image and its latents, and the uploaded photo, if any."""

    latents: HostLatents
    pixels: Pixels
    photo: Photo | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """An edited image and the recipe of the edit.

    Attributes:
        start: The image before the edit.
        recipe: The settings of the edit.
        face: The image after the edit.
        changed: Number of channels that an instant edit changed.
    """

    start: Face
    recipe: Recipe
    face: Face
    changed: int | None = None


class Progress(NamedTuple):
    """The state of a running optimization.

    Attributes:
        step: Number of steps taken.
        losses: The loss of every step.
        seconds_left: Estimated remaining time.
        face: The current image.
        edit: The result; None until the optimization is finished.
    """

    step: int
    losses: tuple[float, ...]
    seconds_left: float
    face: Face
    edit: Edit | None = None
