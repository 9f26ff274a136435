"""What a run leaves behind: images, and measurements with what is needed to repeat them."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from styleclip_jax.io.files import replace_file
from styleclip_jax.io.images import write_image

_LIBRARIES = ("styleclip-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def image_name(i: int) -> str:
    """File name of an image."""
    return f"{i:03}.png"


def write_images(
    directory: Path, images: Float[Array | np.ndarray, "batch height width 3"], first: int = 0
) -> None:
    """Writes images in [-1, 1] one by one; ``first`` is the number of the first one."""
    for i, image in enumerate(np.asarray(images), first):
        write_image(directory / image_name(i), image)


def write_metrics(path: Path, metrics: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """Writes measurements as JSON, beside the script's flags, the device and the versions."""
    content = {
        **metrics,
        "flags": flags,
        "device": jax.devices()[0].device_kind,
        "versions": library_versions(),
    }
    with replace_file(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False).encode())


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result."""
    return {name: _version(name) for name in _LIBRARIES}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
