"""Makes mapper_training.npz: steps of the official mapper training on seeded weights.

Usage, with checkouts of orpatashnik/StyleCLIP and openai/CLIP:

    python tests/golden/make_mapper_training.py --styleclip=PATH --clip=PATH
"""

import importlib
from argparse import Namespace
from typing import Any
from unittest import mock

import numpy as np
import official
import seeded
import torch
from absl import app, flags

_STYLECLIP = flags.DEFINE_string("styleclip", None, "Checkout of StyleCLIP.", required=True)
_CLIP = flags.DEFINE_string("clip", None, "Checkout of openai/CLIP.", required=True)

SEED = 5
BATCH = 2
DESCRIPTION = "a person with purple hair"
GENERATOR = {"resolution": 64, "channel_base": 512, "channel_max": 16}
LAYERS = 10
STYLE_DIMENSIONS = (16,) * 12 + (8, 8)
# Name: StyleSpace, optimizer, learning rate, weight of the identity loss, steps, number of the
# latents, which avoid leaky ReLU's kinks as in make_optimization.py. These gradients are so small
# that Ranger's eps dominates, and its default rate of 0.5 changes nothing in float32. Its first
# five steps are only momentum; the longer runs reach RAdam's second phase and Lookahead.
CASES = {
    "adam": (False, "adam", 0.5, 0.1, 5, 4),
    "ranger": (False, "ranger", 1e6, 0.0, 5, 0),
    "ranger_12_steps": (False, "ranger", 1e4, 0.0, 12, 0),
    "adam_styles": (True, "adam", 0.5, 0.0, 5, 0),
    "ranger_styles": (True, "ranger", 100.0, 0.0, 12, 0),
}
MAPPERS = {False: "LevelsMapper", True: "WithoutToRGBStyleSpaceMapper"}


def networks() -> tuple[dict[str, torch.nn.Module], dict[str, Any]]:
    """Returns the seeded networks and the seeds and shapes of their weights."""
    generator = official.narrow(
        importlib.import_module("models.stylegan2.model").Generator,
        GENERATOR["channel_base"],
        GENERATOR["channel_max"],
    )
    backbone = importlib.import_module("models.facial_recognition.model_irse").Backbone
    latent_mappers = importlib.import_module("mapper.latent_mappers")
    groups = Namespace(no_coarse_mapper=False, no_medium_mapper=False, no_fine_mapper=False)
    made = {
        "generator": generator(GENERATOR["resolution"], 512, 8),
        "clip": official.clip_model(official.SMALL_CLIP),
        "arcface": backbone(112, 50, mode="ir_se"),
        "LevelsMapper": latent_mappers.LevelsMapper(groups),
    }
    with mock.patch.object(latent_mappers, "STYLESPACE_DIMENSIONS", STYLE_DIMENSIONS):
        made[MAPPERS[True]] = latent_mappers.WithoutToRGBStyleSpaceMapper(groups)
    return made, {name: official.fill(network, SEED) for name, network in made.items()}


def input_shapes(in_styles: bool, steps: int, number: int) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the latents of all steps, one row after the other."""
    rows = steps * BATCH
    if not in_styles:
        return {f"w_plus.{number}.{rows}": (rows, LAYERS, 512)}
    return {f"style_{i}.{number}.{rows}": (rows, width) for i, width in enumerate(STYLE_DIMENSIONS)}


def batches(shapes: dict[str, tuple[int, ...]], in_styles: bool) -> tuple[Any, list[torch.Tensor]]:
    """Returns the latents as the official files hold them, and as the data loader yields them."""
    latents = [torch.from_numpy(seeded.seeded_tensor(*item, SEED)) for item in shapes.items()]
    if not in_styles:
        return latents[0], list(latents[0].split(BATCH))
    latents = [style[:, None, :, None, None] for style in latents]
    datasets = importlib.import_module("mapper.datasets.latents_dataset")
    padded = datasets.StyleSpaceLatentsDataset(latents, None).latents
    return latents, list(padded.split(BATCH))


def run(
    models: dict[str, torch.nn.Module], case: tuple[bool, str, float, float, int, int]
) -> tuple[dict[str, Any], torch.nn.Module, list[dict[str, float]]]:
    """Returns the options, the mapper after the last step, and every step's losses."""
    in_styles, optimizer, learning_rate, id_lambda, steps, number = case
    all_latents, dealt = batches(input_shapes(in_styles, steps, number), in_styles)
    parts = {"mapper": models[MAPPERS[in_styles]], "decoder": models["generator"]}
    files = {
        "mapper": {
            "state_dict": {
                f"{part}.{key}": value.clone()
                for part, model in parts.items()
                for key, value in model.state_dict().items()
            }
        },
        "arcface": models["arcface"].state_dict(),
        "latents": all_latents,
    }
    options = {
        "description": DESCRIPTION,
        "checkpoint_path": "mapper",
        "ir_se50_weights": "arcface",
        "stylegan_size": GENERATOR["resolution"],
        "work_in_stylespace": in_styles,
        "batch_size": BATCH,
        "optim_name": optimizer,
        "learning_rate": learning_rate,
        "id_lambda": id_lambda,
        "clip_lambda": 1.0,
        "latent_l2_lambda": 0.8,
    }
    trained, history = [], []

    def record(mapper: torch.nn.Module, losses: dict[str, float]) -> None:
        trained[:] = [mapper]
        history.append(losses)

    with (
        mock.patch("mapper.latent_mappers.STYLESPACE_DIMENSIONS", STYLE_DIMENSIONS),
        mock.patch("mapper.training.train_utils.STYLESPACE_DIMENSIONS", STYLE_DIMENSIONS),
    ):
        official.train(options, files, models["clip"], type(models["generator"]), dealt, record)
    return options, trained[0], history


def main(_: list[str]) -> None:
    """Writes the file."""
    official.prepare(_STYLECLIP.value, _CLIP.value)
    models, weights = networks()
    cases, inputs, outputs = {}, {}, {}
    for name, case in CASES.items():
        in_styles, steps, number = case[0], case[-2], case[-1]
        options, mapper, history = run(models, case)
        shapes = input_shapes(in_styles, steps, number)
        cases[name] = {
            **options,
            "steps": steps,
            "mapper_type": MAPPERS[in_styles],
            "inputs": list(shapes),
        }
        inputs.update(shapes)
        for key in history[0]:
            if key != "id_improve":
                outputs[f"{name}.{key}"] = torch.tensor([losses[key] for losses in history])
        before = models[MAPPERS[in_styles]].state_dict()
        every = 1 if in_styles else 16
        for key, after in mapper.state_dict().items():
            update = after - before[key]
            strided = update[::every, ::every] if update.ndim == 2 else update
            outputs[f"{name}.update.{key}"] = strided
            outputs[f"{name}.update_norm.{key}"] = update.norm()

    settings = {
        "seed": SEED,
        "weights": weights,
        "inputs": inputs,
        "generator": {"z_dim": 512, "w_dim": 512, "mapping_layers": 8, **GENERATOR},
        "style_dimensions": STYLE_DIMENSIONS,
        "clip": official.SMALL_CLIP,
        "cases": cases,
        "strength": 0.1,
        "tokens": importlib.import_module("clip").tokenize([DESCRIPTION]).tolist(),
        "versions": official.VERSIONS,
    }
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    seeded.save("mapper_training", settings, arrays)


if __name__ == "__main__":
    app.run(main)
