"""Makes delta_mapper.npz: the official DeltaEdit mapper and steps of its training.

Usage, with a checkout of Yueming6568/DeltaEdit:

    python tests/golden/make_delta_mapper.py --deltaedit=PATH
"""

import contextlib
import importlib
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import official
import seeded
import torch
from absl import app, flags

_DELTAEDIT = flags.DEFINE_string("deltaedit", None, "Checkout of DeltaEdit.", required=True)

SEED = 6
BATCH = 4
# The official widths, which the class spells out, divided by 32: a 1024 px generator of 16 to 1
# channels, and a CLIP with features of 16.
WIDTHS = {"1024": "32", "2464": "77", "512": "16"}
GENERATOR = {"resolution": 1024, "channel_base": 1024, "channel_max": 16}
STYLES, FEATURES = 7 * 16 + 77, 16
TRAINING = {"steps": 5, "learning_rate": 0.5, "l2_lambda": 1.0, "cos_lambda": 1.0}
ROWS = TRAINING["steps"] * BATCH
# The row of each row's partner; the first is its own.
PARTNERS = [7 * i % ROWS for i in range(ROWS)]


def narrow_module() -> ModuleType:
    """The official module with narrower layers."""
    source = Path(_DELTAEDIT.value, "delta_mapper.py").read_text()
    for official_width, width in WIDTHS.items():
        source = source.replace(official_width, width)
    module = ModuleType("delta_mapper")
    exec(compile(source, "delta_mapper.py", "exec"), vars(module))
    sys.modules["delta_mapper"] = module
    return module


def batches(inputs: dict[str, tuple[int, ...]]) -> list[list[torch.Tensor]]:
    """Batches of the official data set for images and their partners, in the order of the rows."""
    script = importlib.import_module("datasets.train_dataset")
    stored = {"sspace": "styles", "cspace": "features", "wspace": "styles"}

    def load(path: str) -> np.ndarray:
        name = stored[Path(path).name.split("_")[0]]
        half = inputs[name][0] // 2
        array = seeded.seeded_tensor(name, inputs[name], SEED)
        return array[:half] if "noise" in path else array[half:]

    with mock.patch.object(script.np, "load", load):
        data = script.TrainLatentsDataset(Namespace(classname="golden"))
    rows = inputs["styles"][0]
    with mock.patch.object(script.random, "randint", side_effect=PARTNERS):
        items = [data[i] for i in range(rows)]
    whole = [torch.stack(column) for column in zip(*items, strict=True)]
    return [list(x) for x in zip(*(column.split(BATCH) for column in whole), strict=True)]


def train(mapper: torch.nn.Module, dealt: list[list[torch.Tensor]]) -> list[list[float]]:
    """Runs the ``main`` of scripts/train.py; returns the L2 and cosine losses of every step."""
    script = importlib.import_module("scripts.train")
    losses = []
    options = TRAINING | {
        "classname": "golden",
        "checkpoint_path": "/nowhere",
        "batch_size": BATCH,
        "workers": 0,
        "print_interval": 1,
        "save_interval": 10**9,
    }
    with (
        mock.patch.object(script, "TrainLatentsDataset"),
        mock.patch.object(script, "DataLoader", lambda *_, **__: dealt),
        mock.patch.object(script, "DeltaMapper", lambda: mapper),
        mock.patch("os.makedirs"),
        mock.patch("torch.save"),
        mock.patch("builtins.print", lambda *values: losses.append([float(v) for v in values[2:]])),
    ):
        script.main(Namespace(**options))
    return losses


def main(_: list[str]) -> None:
    """Writes the file."""
    official.prepare(_DELTAEDIT.value)
    mapper = narrow_module().DeltaMapper()
    weights = official.fill(mapper, SEED)
    inputs = {"styles": (ROWS, STYLES), "features": (ROWS, FEATURES)}
    with contextlib.redirect_stdout(sys.stderr):
        dealt = batches(inputs)
    with torch.no_grad():
        residual = mapper(*dealt[0][:2])
    arrays = {"residual": residual.numpy()}
    before = {name: value.clone() for name, value in mapper.state_dict().items()}
    arrays["losses"] = np.array(train(mapper, dealt))
    for name, value in mapper.state_dict().items():
        arrays[f"moved.{name}"] = (value - before[name]).numpy()
    settings = {
        "seed": SEED,
        "weights": {"mapper": weights},
        "inputs": inputs,
        "batch": BATCH,
        "partners": PARTNERS,
        "generator": GENERATOR,
        "training": TRAINING,
        "versions": official.VERSIONS,
    }
    seeded.save("delta_mapper", settings, arrays)


if __name__ == "__main__":
    app.run(main)
