"""Makes e4e.npz: the official encoders of e4e and ReStyle on seeded weights.

Usage, with checkouts of omertov/encoder4editing and yuval-alaluf/restyle-encoder:

    python tests/golden/make_e4e.py --e4e=PATH --restyle=PATH
"""

import importlib
import sys
from argparse import Namespace
from unittest import mock

import official
import seeded
import torch
from absl import app, flags

_E4E = flags.DEFINE_string("e4e", None, "Checkout of encoder4editing.", required=True)
_RESTYLE = flags.DEFINE_string("restyle", None, "Checkout of restyle-encoder.", required=True)

SEED = 6
# The encoder of a generator of 32 pixels has all three kinds of heads.
GENERATOR_SIZE = 32
LAYERS = 8


def main(_: list[str]) -> None:
    """Writes the file."""
    weights, inputs, outputs = {}, {}, {}

    def record(name: str, model: str, encoder: torch.nn.Module, *shape: int) -> None:
        weights[model] = official.fill(encoder.eval(), SEED)
        key = f"images.{name}"
        inputs[key] = shape
        with torch.no_grad():
            outputs[name] = encoder(torch.from_numpy(seeded.seeded_tensor(key, shape, SEED)))

    # The generators' CUDA kernels are compiled at import, but no encoder uses them.
    with mock.patch("torch.utils.cpp_extension.load"):
        official.prepare(_E4E.value)
        encoders = importlib.import_module("models.encoders.psp_encoders")
        encoder = encoders.Encoder4Editing(50, "ir_se", Namespace(stylegan_size=GENERATOR_SIZE))
        record("faces", "e4e", encoder, 1, 3, 256, 256)
        record("cars", "e4e", encoder, 1, 3, 192, 256)

        # Both repositories use this package name.
        for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
            del sys.modules[name]
        official.prepare(_RESTYLE.value)
        encoders = importlib.import_module("models.encoders.restyle_e4e_encoders")
        options = Namespace(input_nc=6)
        encoder = encoders.ProgressiveBackboneEncoder(50, "ir_se", LAYERS, options)
        record("restyle", "restyle", encoder, 1, 6, 256, 256)

    settings = {
        "weights": weights,
        "inputs": inputs,
        "seed": SEED,
        "layers": LAYERS,
        "versions": official.VERSIONS,
    }
    seeded.save("e4e", settings, {name: array.numpy() for name, array in outputs.items()})


if __name__ == "__main__":
    app.run(main)
