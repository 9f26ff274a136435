"""Photographs of faces that packages of the tests ship, found without importing the packages."""

import importlib.util
from pathlib import Path

from PIL import Image

_FILES = {
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
}
# The face reaches beyond two edges, so that the alignment mirrors and blurs.
_CUT_BOX = (150, 40, 400, 300)


def path(name: str) -> Path:
    """The file of ``hopper`` (Grace Hopper, JPEG) or ``astronaut`` (Eileen Collins, PNG)."""
    package, file = _FILES[name]
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations, f"{package} is not installed"
    return Path(spec.submodule_search_locations[0], file)


def photo(name: str) -> Image.Image:
    """The photograph in RGB; ``astronaut_cut`` is a part without some of the head."""
    with Image.open(path(name.removesuffix("_cut"))) as image:
        image = image.convert("RGB")
    return image.crop(_CUT_BOX) if name.endswith("_cut") else image
