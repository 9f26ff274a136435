"""Versions of the libraries that affect results."""

import importlib.metadata

_LIBRARIES = ("styleclip-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def library_versions() -> dict[str, str]:
    """The installed versions, by the libraries' names."""
    return {name: _version(name) for name in _LIBRARIES}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
