"""What a script leaves in its directory: images, their latents, and measurements."""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float

from styleclip_jax.files import replace_file
from styleclip_jax.images import write_image
from styleclip_jax.latents import Latents, save_latents

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def image_name(i: int) -> str:
    """File name of an image."""
    return f"{i:03}.png"


def write_images(
    directory: Path, images: Float[Array | np.ndarray, "batch height width 3"], latents: Latents
) -> None:
    """Writes images in [-1, 1] one by one, and their latents."""
    for i, image in enumerate(images):
        write_image(directory / image_name(i), image)
    save_latents(directory / "latents", latents)


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Writes measurements as JSON, and what is needed to repeat the run: flags and versions."""
    defined = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    content = {
        **metrics,
        "flags": {flag.name: flag.value for flag in defined},
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    with replace_file(path) as file:
        file.write(json.dumps(content, indent=2).encode())
