"""Weights and inputs regenerated from a key, a shape and a seed, and the golden files.

A golden file contains seeds, shapes and outputs of the official PyTorch code; the weights
themselves are not stored. Values come from Philox's raw integers, whose stream numpy
guarantees, through exact float32 arithmetic, so the bits are the same everywhere.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from styleclip_jax.io.checkpoints import abstract_model

DIRECTORY = Path(__file__).parent

Shape = Sequence[int]
Deviation = float | Callable[[Shape], float]


def _per_input(shape: Shape) -> float:
    return 1 / math.sqrt(math.prod(shape[1:]))


def _per_row(shape: Shape) -> float:
    return 1 / math.sqrt(shape[0])


# (pattern of the key, number of axes or None for any, mean, standard deviation); the first that
# matches counts. The scales keep every layer's output near one, as trained weights do.
_SCALES: tuple[tuple[str, int | None, float, Deviation], ...] = (
    # Equalized learning rate: raw weights are of unit size, those of mapping networks 1 / lr_mul.
    (r"(^style|mapping)\.(fc)?\d+\.weight$", None, 0, 100),
    (r"(^style|mapping)\.(fc)?\d+\.bias$", None, 0, 20),
    (r"(modulation|affine)\.bias$", None, 1, 0.2),
    (r"(modulation|affine)\.weight$", None, 0, 1),
    (r"(noise\.weight|noise_strength)$", None, 0.2, 0.05),
    (r"to_?rgb.*weight$", None, 0, 0.3),
    (r"(\.conv|^synthesis\..*conv[01])\.weight$", None, 0, 1),
    (r"(w_avg|latent_avg)", None, 0, 0.5),
    # Batch normalization and PReLU of the IR-SE networks.
    (r"running_var$", None, 1, 0.3),
    (r"running_mean$", None, 0, 0.2),
    (r"(res|input)_layer\.2\.weight$", None, 0.25, 0.1),
    # Equalized layers of e4e, and the weights of LPIPS, which are positive.
    (r"styles\.\d+\.linear\.weight$", None, 0, 1),
    (r"^lin\d\.model\.1\.weight$", None, 0.5, 0.2),
    # CLIP.
    (r"logit_scale$", None, math.log(100), 0),
    (r"(token|class)_embedding(\.weight)?$", None, 0, 0.5),
    (r"positional_embedding$", None, 0, 0.3),
    (r"proj(ection)?$", None, 0, _per_row),
    # Everything else.
    (r"weight$", 1, 1, 0.2),
    (r"weight$", None, 0, _per_input),
    (r"bias$", None, 0, 0.2),
    (r"^images", None, 0, 1 / math.sqrt(3)),
    (r"", None, 0, 1),
)

_BLUR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64


def seeded_tensor(key: str, shape: Shape, seed: int) -> np.ndarray:
    """Returns the float32 array that belongs to a key, of a size that suits the key's role.

    Entries are uniform with the mean and standard deviation that the key's name asks for; keys
    that start with ``images`` fill [-1, 1]. The resampling filters of StyleGAN2 and the counters
    of batch normalization get the constants (the latter int64) that the official modules hold.
    """
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("resample_filter"):
        return _BLUR
    if key.endswith((".blur.kernel", ".upsample.kernel")):
        return 4 * _BLUR
    size = math.prod(shape)
    stream = np.random.Philox(key=np.array([zlib.crc32(key.encode()), seed], np.uint64))
    integers = stream.random_raw((size + 1) // 2).astype("<u8").view("<u4")[:size]
    unit = (integers >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    mean, deviation = next(
        (mean, deviation)
        for pattern, axes, mean, deviation in _SCALES
        if re.search(pattern, key) and axes in (None, len(shape))
    )
    if callable(deviation):
        deviation = deviation(shape)
    scaled = unit * np.float32(math.sqrt(3) * deviation) + np.float32(mean)
    return scaled.reshape(shape)


def state_dict(manifest: Mapping[str, Shape], seed: int) -> dict[str, np.ndarray]:
    """Returns `seeded_tensor` for every key of a manifest of shapes."""
    return {key: seeded_tensor(key, shape, seed) for key, shape in manifest.items()}


@dataclass(frozen=True)
class Golden:
    """Inputs of a run of the official code, as seeds, and its outputs.

    Attributes:
        settings: ``weights`` (model name to ``seed`` and ``shapes``), ``inputs`` (name to shape),
            ``seed`` of the inputs, ``versions`` and everything else that the run depended on.
        arrays: the official outputs by name, in the official layout (images NCHW).
    """

    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def weights(self, model: str) -> dict[str, np.ndarray]:
        """Returns the official state dict of one of the models, under the official keys."""
        weights = self.settings["weights"][model]
        return state_dict(weights["shapes"], weights["seed"])

    def input(self, name: str) -> np.ndarray:
        """Returns one of the inputs, in the official layout."""
        return seeded_tensor(name, self.settings["inputs"][name], self.settings["seed"])

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns one of the outputs."""
        return self.arrays[name]


def load(name: str) -> Golden:
    """Reads ``tests/golden/NAME.npz``."""
    with np.load(DIRECTORY / f"{name}.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    return Golden(json.loads(str(arrays.pop("settings"))), arrays)


def save(name: str, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``tests/golden/NAME.npz``, every array as float32 unless it holds integers."""
    stored: dict[str, Any] = {
        key: array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32)
        for key, array in arrays.items()
    }
    stored["settings"] = json.dumps(settings)
    np.savez_compressed(DIRECTORY / f"{name}.npz", **stored)


def parameter_shapes(model_class: Callable[..., nnx.Module], config: Any) -> dict[str, tuple]:
    """The shapes of a model's parameters by dotted path."""
    state = nnx.to_flat_state(nnx.state(abstract_model(model_class, config)))
    return {".".join(map(str, path)): variable.shape for path, variable in state}
