"""Files of latents.

W+ latents are a ``.npy`` file of shape (N, layers, w_dim); StyleSpace coordinates are an ``.npz``
file with one array (N, C_i) per layer, named ``layer_00``, ``layer_01`` and so on in the official
order.
"""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from styleclip_jax.errors import InputError
from styleclip_jax.io.files import replace_file
from styleclip_jax.latents import Latents
from styleclip_jax.models.stylegan2 import Generator


def load_latents(path: str | os.PathLike[str], generator: Generator) -> Latents:
    """Reads W+ latents from ``.npy`` or StyleSpace coordinates from ``.npz``, by content.

    Args:
        path: A file of :func:`save_latents` or ``python -m ckpt_convert latents``.
        generator: Whose latents they should be.

    Raises:
        InputError: There is no such file, it is damaged, its shape is not what the generator
            needs, it is empty, or it has values that are not finite.
    """
    path = Path(path).expanduser()
    content = _read(path)
    config = generator.config
    if isinstance(content, dict):
        dims = config.style_dims
        expected = {f"layer_{i:02}": (None, width) for i, width in enumerate(dims)}
        if set(content) != set(expected):
            raise InputError(
                f"{path} has the {len(content)} arrays {_some(sorted(content))}, this generator"
                f" needs the {len(dims)} StyleSpace arrays {_some(list(expected))}"
            )
        counts = {array.shape[:1] for array in content.values()}
        if len(counts) > 1:
            raise InputError(f"{path} has different numbers of latents per layer: {counts}")
    else:
        content, expected = {"": content}, {"": (None, config.num_layers, config.w_dim)}
    for name, shape in expected.items():
        _check(f"{path} {name}".strip(), content[name], shape)
    # Copies, for the file may change later.
    arrays = tuple(jnp.array(content[name], jnp.float32) for name in expected)
    return arrays if "" not in expected else arrays[0]


def save_latents(path: str | os.PathLike[str], latents: Latents) -> None:
    """Writes latents to ``path`` plus ``.npy`` (W+) or ``.npz`` (StyleSpace), completely or not."""
    in_stylespace = isinstance(latents, tuple)
    with replace_file(f"{path}{'.npz' if in_stylespace else '.npy'}") as file:
        if in_stylespace:
            arrays = {f"layer_{i:02}": np.asarray(x) for i, x in enumerate(latents)}
            np.savez(file, allow_pickle=False, **arrays)
        else:
            np.save(file, np.asarray(latents))


def _read(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory, expected a .npy or .npz file") from None
    try:
        # Pickled objects are refused: they could run code.
        with file:
            prefix = np.lib.format.MAGIC_PREFIX
            if file.read(len(prefix)) == prefix:
                # Mapped, for it can be large.
                return np.load(path, mmap_mode="r", allow_pickle=False)
            file.seek(0)
            return dict(np.load(file, allow_pickle=False))
    except Exception:  # NumPy, zipfile and zlib have many for damaged files.
        raise InputError(
            f"{path} holds no latents, or is damaged; expected a .npy file of W+ latents or an .npz"
            " file of StyleSpace arrays; official .pt files are converted with"
            " python -m ckpt_convert latents"
        ) from None


def _check(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    wanted = f"({', '.join('N' if n is None else str(n) for n in shape)})"
    if array.ndim != len(shape) or array.shape[1:] != shape[1:]:
        raise InputError(f"{name} has shape {array.shape}, this generator needs {wanted}")
    if len(array) == 0:
        raise InputError(f"{name} is empty, expected at least one latent {wanted}")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} has type {array.dtype}, expected floating-point numbers")
    # Without temporary arrays, for there can be many latents; comparisons with NaN are false.
    largest = np.finfo(np.float32).max
    if not (array.min() >= -largest and array.max() <= largest):
        raise InputError(f"{name} has NaN or infinite values; make the latents again")


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]}"
