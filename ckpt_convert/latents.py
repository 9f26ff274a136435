"""Latents: a W+ tensor (N, layers, w_dim) to ``.npy``, a list of StyleSpace tensors to ``.npz``."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ckpt_convert.formats import SourceFile
from ckpt_convert.tables import describe
from styleclip_jax.errors import InputError
from styleclip_jax.io.latents import save_latents
from styleclip_jax.latents import Latents


def convert(source: SourceFile) -> Latents:
    """Converts a file to latents.

    Returns:
        W+ latents (N, layers, w_dim), or a tuple of StyleSpace entries (N, C_i).

    Raises:
        InputError: The file has other contents, is empty, or has NaN.
    """
    if set(source.tensors) == {""}:
        latents = source.tensors[""]
        _check(source.name, latents, latents.ndim == 3, "(N, layers, w_dim)")
        return jnp.asarray(latents, jnp.float32)
    if not source.tensors or list(source.tensors) != [str(i) for i in range(len(source.tensors))]:
        raise InputError(
            f"{source.name} is neither a tensor (N, layers, w_dim) nor a list of StyleSpace "
            f"tensors ({describe(source)})"
        )
    entries = []
    for i, style in enumerate(source.tensors.values()):
        # The official code keeps the axes that its modulation broadcasts.
        fits = style.ndim == 2 or (
            style.ndim == 5 and style.shape[1::2] + style.shape[4:] == (1, 1, 1)
        )
        _check(f"{source.name}, tensor {i}", style, fits, "(N, channels) or (N, 1, channels, 1, 1)")
        entries.append(jnp.asarray(style.reshape(len(style), -1), jnp.float32))
    counts = {len(entry) for entry in entries}
    if len(counts) > 1:
        raise InputError(f"{source.name} has {counts} latents per layer, expected the same number")
    return tuple(entries)


def save(path: str | os.PathLike[str], latents: Latents) -> None:
    """Atomically writes latents to ``path``.

    Raises:
        InputError: ``path`` exists, is not local or has the wrong suffix.
    """
    if "://" in os.fspath(path):
        raise InputError(f"{path} is a URL, expected a local path")
    path = Path(path)
    kind, suffix = ("StyleSpace", ".npz") if isinstance(latents, tuple) else ("W+", ".npy")
    if path.suffix != suffix:
        raise InputError(f"{path} has the wrong suffix, expected {suffix} for {kind} latents")
    if path.exists():
        raise InputError(f"{path} already exists; choose another name or remove it first")
    save_latents(path.with_suffix(""), latents)


def _check(name: str, latents: np.ndarray, fits: bool, expected: str) -> None:
    if not fits or 0 in latents.shape:
        raise InputError(f"{name} has shape {latents.shape}, expected {expected}")
    if not np.isfinite(latents.astype(np.float32)).all():
        raise InputError(f"{name} has NaN or infinite values, expected finite numbers")
