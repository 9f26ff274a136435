"""JAX's persistent cache of compiled programs."""

import os
import warnings
from pathlib import Path
from typing import Any

import jax

from styleclip_jax.io.files import expand_user

CACHE = Path("~/.cache/styleclip_jax")


def enable_compilation_cache(path: str | os.PathLike[str] = CACHE) -> None:
    """Caches compiled programs on disk, so that the next process starts faster.

    Does nothing if JAX already has a cache (``JAX_COMPILATION_CACHE_DIR``). A cache that cannot be
    read or written costs time but raises no warning.

    Args:
        path: The directory.

    Raises:
        InputError: ``path`` starts with the name of a user that does not exist.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    config: Any = jax.config
    if not config.jax_compilation_cache_dir:
        config.update("jax_compilation_cache_dir", str(expand_user(path)))
