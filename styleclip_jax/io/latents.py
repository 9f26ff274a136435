"""Files of latents.

W+ latents are a ``.npy`` file of shape (N, layers, w_dim); StyleSpace coordinates are an ``.npz``
file with one array (N, C_i) per layer, named ``layer_00``, ``layer_01`` and so on in the official
order.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from styleclip_jax.errors import InputError
from styleclip_jax.io.archives import Archive
from styleclip_jax.io.files import expand_user, replace_file, require_file
from styleclip_jax.latents import Latents
from styleclip_jax.models.stylegan2 import Generator, StyleSpace


def load_latents(path: str | os.PathLike[str], generator: Generator) -> Latents:
    """Reads W+ latents from ``.npy`` or StyleSpace coordinates from ``.npz``, by content.

    Args:
        path: A file written by :func:`save_latents` or ``python -m ckpt_convert latents``.
        generator: The generator that the latents are for.

    Raises:
        InputError: The file does not exist, is damaged or empty, does not match the generator, or
            has values that are not finite.
    """
    path = expand_user(path)
    require_file(path, "a .npy or .npz file")
    config = generator.config
    with path.open("rb") as file:
        in_stylespace = file.read(2) == b"PK"
    try:
        if in_stylespace:
            return _read_styles(path, config.style_dims)
        # Memory-mapped, because it can be large. Pickled objects are refused: they could run code.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return _checked(str(path), array, (None, config.num_layers, config.w_dim))
    except InputError:
        raise
    except Exception:  # NumPy, zipfile and zlib raise many types for damaged files.
        raise InputError(
            f"{path} has no latents or is damaged, expected a .npy file of W+ latents or an .npz"
            " file of StyleSpace arrays; convert official .pt files with"
            " python -m ckpt_convert latents"
        ) from None


def save_latents(
    path: str | os.PathLike[str], latents: Latents | np.ndarray | tuple[np.ndarray, ...]
) -> None:
    """Atomically writes latents to a file for :func:`load_latents`.

    Args:
        path: The file. The suffix, ``.npy`` for W+ or ``.npz`` for StyleSpace, may be omitted.
        latents: W+ (N, layers, w_dim), or StyleSpace coordinates.

    Raises:
        InputError: The name has the suffix of the other kind.
        OSError: The file cannot be written, for example to a full disk.
    """
    kind, ending = ("StyleSpace" if isinstance(latents, tuple) else "W+"), latents_ending(latents)
    given = Path(path).suffix
    if given in {".npy", ".npz"} - {ending}:
        raise InputError(f"{path} ends in {given}, expected {ending} for {kind} latents")
    with replace_file(path if given == ending else f"{path}{ending}") as file:
        write_latents(file, latents)


def latents_ending(latents: Latents | np.ndarray | tuple[np.ndarray, ...]) -> str:
    """The suffix of a file of such latents: ``.npy`` or ``.npz``."""
    return ".npz" if isinstance(latents, tuple) else ".npy"


def write_latents(
    file: BinaryIO | io.BytesIO, latents: Latents | np.ndarray | tuple[np.ndarray, ...]
) -> None:
    """Writes latents to an open file."""
    if isinstance(latents, tuple):
        arrays = {f"layer_{i:02}": np.asarray(x) for i, x in enumerate(latents)}
        np.savez(file, allow_pickle=False, **arrays)
    else:
        np.save(file, np.asarray(latents))


def _read_styles(path: Path, widths: Sequence[int]) -> StyleSpace:
    expected = [f"layer_{i:02}" for i in range(len(widths))]
    with Archive(path) as archive:
        found = sorted(name.removesuffix(".npy") for name in archive.names)
        if found != expected:
            raise InputError(
                f"{path} has the {len(found)} arrays {_some(found)}, expected the"
                f" {len(widths)} StyleSpace arrays {_some(expected)} for this generator"
            )
        styles = []
        for name, width in zip(expected, widths, strict=True):
            with archive.open(f"{name}.npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            styles.append(_checked(f"{path} {name}", array, (None, width)))
    counts = {len(style) for style in styles}
    if len(counts) > 1:
        raise InputError(f"{path} has {counts} latents per layer, expected the same number")
    return tuple(styles)


def _checked(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> Float[Array, "..."]:
    """Checks the shape and values of N latents, and converts them to float32."""
    wanted = f"({', '.join('N' if n is None else str(n) for n in shape)})"
    if array.ndim != len(shape) or array.shape[1:] != shape[1:]:
        raise InputError(f"{name} has shape {array.shape}, expected {wanted} for this generator")
    if len(array) == 0:
        raise InputError(f"{name} is empty, expected at least one latent {wanted}")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} has type {array.dtype}, expected floating-point numbers")
    # Without temporary arrays, because there may be many; comparisons with NaN are false.
    largest = np.finfo(np.float32).max
    if not (array.min() >= -largest and array.max() <= largest):
        raise InputError(f"{name} has NaN or infinite values; create the latents again")
    # A copy, because the file may change later.
    return jnp.array(array, jnp.float32)


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]}"
