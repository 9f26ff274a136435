"""Makes mapper.npz: the official mappers, ArcFace, identity loss and Ranger on seeded weights.

Usage, with a checkout of orpatashnik/StyleCLIP:

    python tests/golden/make_mapper.py --styleclip=PATH
"""

import importlib
from argparse import Namespace
from unittest import mock

import numpy as np
import official
import seeded
import torch
from absl import app, flags

_STYLECLIP = flags.DEFINE_string("styleclip", None, "Checkout of StyleCLIP.", required=True)

SEED = 4
GROUPS = ("coarse", "medium", "fine")
# Name: class, number of W+ layers, groups left out.
LATENT_MAPPERS = {
    "levels": ("LevelsMapper", 18, ()),
    "levels_without_coarse": ("LevelsMapper", 18, ("coarse",)),
    "levels_without_medium": ("LevelsMapper", 10, ("medium",)),
    "levels_without_fine": ("LevelsMapper", 10, ("fine",)),
    "single": ("SingleMapper", 10, ()),
}
STYLE_MAPPERS = {
    "styles_full": "FullStyleSpaceMapper",
    "styles_without_rgb": "WithoutToRGBStyleSpaceMapper",
}
# The StyleSpace of a 32 px generator with 32, 32, 16 and 8 channels.
STYLE_DIMENSIONS = (32, 32, 32, 32, 32, 32, 16, 16, 16, 8, 8)
ID_LOSS_SIZES = (64, 256, 512)
RANGER = {"steps": 15, "learning_rate": 0.5, "gradient_scales": {"ordinary": 1e-3, "small": 1e-6}}


class Recorder:
    """Collects the contents of the golden file."""

    def __init__(self) -> None:
        """Starts empty."""
        self.weights, self.inputs, self.outputs = {}, {}, {}

    def input(self, name: str, *shape: int) -> torch.Tensor:
        """Returns a seeded input and notes its shape."""
        self.inputs[name] = shape
        return torch.from_numpy(seeded.seeded_tensor(name, shape, SEED))


def record_mappers(golden: Recorder) -> None:
    """Runs every kind of mapper."""
    latent_mappers = importlib.import_module("mapper.latent_mappers")
    for name, (kind, layers, left_out) in LATENT_MAPPERS.items():
        options = {f"no_{group}_mapper": group in left_out for group in GROUPS}
        mapper = getattr(latent_mappers, kind)(Namespace(**options))
        golden.weights[name] = official.fill(mapper, SEED)
        golden.outputs[name] = mapper(golden.input(f"w_plus.{layers}", 2, layers, 512))[..., ::4]
    with mock.patch.object(latent_mappers, "STYLESPACE_DIMENSIONS", STYLE_DIMENSIONS):
        for name, kind in STYLE_MAPPERS.items():
            mapper = getattr(latent_mappers, kind)(Namespace())
            golden.weights[name] = official.fill(mapper, SEED)
            styles = [
                golden.input(f"style_{i}", 2, width)[:, None, :, None, None]
                for i, width in enumerate(STYLE_DIMENSIONS)
            ]
            for i, residual in enumerate(mapper(styles)):
                golden.outputs[f"{name}.residual_{i}"] = residual.flatten(1)


def record_identity(golden: Recorder) -> None:
    """Runs ArcFace, and the identity loss on images of several sizes."""
    backbone = importlib.import_module("models.facial_recognition.model_irse").Backbone
    arcface = backbone(112, 50, mode="ir_se").eval()
    golden.weights["arcface"] = official.fill(arcface, SEED)
    with torch.no_grad():
        golden.outputs["arcface"] = arcface(golden.input("images.arcface", 3, 3, 112, 112))
    with mock.patch("torch.load", lambda _: arcface.state_dict()):
        criterion = importlib.import_module("criteria.id_loss").IDLoss(
            Namespace(ir_se50_weights=None)
        )
    for size in ID_LOSS_SIZES:
        before = golden.input(f"images.before.{size}", 2, 3, size, size)
        after = golden.input(f"images.after.{size}", 2, 3, size, size)
        after.requires_grad_(size == ID_LOSS_SIZES[0])
        loss, _ = criterion(after, before)
        golden.outputs[f"id_loss.{size}"] = loss
        golden.outputs[f"id_loss.{size}.features"] = criterion.extract_feats(after)
        if after.requires_grad:
            (gradient,) = torch.autograd.grad(loss, after)
            golden.outputs[f"id_loss.{size}.gradient"] = gradient[..., ::2, ::2]


def record_ranger(golden: Recorder) -> None:
    """Runs Ranger on given gradients, far enough for RAdam's second phase and Lookahead."""
    ranger = importlib.import_module("mapper.training.ranger").Ranger
    for name, scale in RANGER["gradient_scales"].items():
        shapes = {f"ranger.{name}.weight": (6, 5), f"ranger.{name}.bias": (6,)}
        parameters = {
            key: torch.nn.Parameter(golden.input(f"{key}.start", *shape))
            for key, shape in shapes.items()
        }
        gradients = {
            key: scale * golden.input(f"{key}.gradients", RANGER["steps"], *shape)
            for key, shape in shapes.items()
        }
        optimizer = ranger(parameters.values(), lr=RANGER["learning_rate"])
        history = {key: [] for key in parameters}
        for step in range(RANGER["steps"]):
            for key, value in parameters.items():
                value.grad = gradients[key][step].clone()
            optimizer.step()
            for key, value in parameters.items():
                history[key].append(value.detach().clone())
        golden.outputs.update({key: torch.stack(values) for key, values in history.items()})


def main(_: list[str]) -> None:
    """Writes the file."""
    official.prepare(_STYLECLIP.value)
    golden = Recorder()
    record_mappers(golden)
    record_identity(golden)
    record_ranger(golden)
    settings = {
        "seed": SEED,
        "weights": golden.weights,
        "inputs": golden.inputs,
        "latent_mappers": LATENT_MAPPERS,
        "style_mappers": STYLE_MAPPERS,
        "style_dimensions": STYLE_DIMENSIONS,
        "ranger": RANGER,
        "versions": official.VERSIONS,
    }
    arrays = {name: np.asarray(value.detach()) for name, value in golden.outputs.items()}
    seeded.save("mapper", settings, arrays)


if __name__ == "__main__":
    app.run(main)
