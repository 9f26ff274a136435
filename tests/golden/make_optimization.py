"""Makes optimization.npz: five steps of the official latent optimization on seeded weights.

Usage, with checkouts of orpatashnik/StyleCLIP and openai/CLIP:

    python tests/golden/make_optimization.py --styleclip=PATH --clip=PATH
"""

import importlib
from typing import Any

import numpy as np
import official
import seeded
import torch
from absl import app, flags

_STYLECLIP = flags.DEFINE_string("styleclip", None, "Checkout of StyleCLIP.", required=True)
_CLIP = flags.DEFINE_string("clip", None, "Checkout of openai/CLIP.", required=True)

SEED = 2
STEPS_RUN = 5
DESCRIPTION = "a person with purple hair"
GENERATOR = {"resolution": 64, "channel_base": 512, "channel_max": 16}
LAYERS = 10
# Name: mode, StyleSpace, number of steps of the schedule, weight of the identity loss, latents to
# start from. If an activation is within rounding of leaky ReLU's kink, rounding decides the
# gradient, and Adam amplifies the difference; the numbered latents avoid this.
CASES = {
    "edit": ("edit", False, 5, 0.0, "w_plus.0"),
    "edit_start_of_300": ("edit", False, 300, 0.0, "w_plus.0"),
    "edit_identity": ("edit", False, 20, 0.05, "w_plus.1"),
    "edit_styles": ("edit", True, 5, 0.0, "w_plus.1"),
    "edit_styles_start_of_300": ("edit", True, 300, 0.0, "w_plus.0"),
    "generate": ("free_generation", False, 5, 0.0, "latent_avg.9"),
    "generate_styles": ("free_generation", True, 20, 0.0, "latent_avg.0"),
}


def networks() -> tuple[dict[str, torch.nn.Module], dict[str, Any]]:
    """Returns the seeded networks and the seeds and shapes of their weights."""
    generator = official.narrow(
        importlib.import_module("models.stylegan2.model").Generator,
        GENERATOR["channel_base"],
        GENERATOR["channel_max"],
    )
    backbone = importlib.import_module("models.facial_recognition.model_irse").Backbone
    made = {
        "generator": generator(GENERATOR["resolution"], 512, 8),
        "clip": official.clip_model(official.SMALL_CLIP),
        "arcface": backbone(112, 50, mode="ir_se"),
    }
    return made, {name: official.fill(network, SEED) for name, network in made.items()}


def latents_shape(name: str) -> tuple[int, ...]:
    """Returns the shape of one of the latents that `CASES` names."""
    return (1, LAYERS, 512) if name.startswith("w_plus") else (1, 512)


def run(
    models: dict[str, torch.nn.Module], case: tuple[str, bool, int, float, str]
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """Returns the command line, the flat latents after each step, and each step's loss."""
    mode, in_styles, steps, id_lambda, start = case
    files = {
        "generator": {"g_ema": models["generator"].state_dict()},
        "arcface": models["arcface"].state_dict(),
        "latents": torch.from_numpy(seeded.seeded_tensor(start, latents_shape(start), SEED)),
    }
    arguments = {
        "description": DESCRIPTION,
        "ckpt": "generator",
        "stylegan_size": GENERATOR["resolution"],
        "lr": 0.1,
        "step": steps,
        "mode": mode,
        "l2_lambda": 0.008,
        "id_lambda": id_lambda,
        "latent_path": "latents" if mode == "edit" else None,
        "truncation": 1.0,
        "work_in_stylespace": in_styles,
        "ir_se50_weights": "arcface",
    }

    class Generator(type(models["generator"])):
        def mean_latent(self, _: int) -> torch.Tensor:
            return files["latents"]

    latents, losses = [], []

    def record(current: list[torch.Tensor], loss: float) -> None:
        # Mode free_generation always makes 18 layers, of which the generator reads its own.
        flat = [entry[:, :LAYERS].detach().flatten() for entry in current]
        latents.append(torch.cat(flat))
        losses.append(loss)

    official.optimize(arguments, files, models["clip"], Generator, STEPS_RUN, record)
    return arguments, torch.stack(latents), torch.tensor(losses)


def main(_: list[str]) -> None:
    """Writes the file."""
    official.prepare(_STYLECLIP.value, _CLIP.value)
    models, weights = networks()
    cases, outputs = {}, {}
    for name, case in CASES.items():
        arguments, latents, outputs[f"{name}.losses"] = run(models, case)
        cases[name] = {**arguments, "latents": case[-1]}
        outputs[f"{name}.latents"] = latents if case[1] else latents[:, ::4]
        outputs[f"{name}.final"] = latents[-1]

    starts = {case[-1] for case in CASES.values()}
    settings = {
        "seed": SEED,
        "weights": weights,
        "inputs": {start: latents_shape(start) for start in sorted(starts)},
        "generator": {"z_dim": 512, "w_dim": 512, "mapping_layers": 8, **GENERATOR},
        "clip": official.SMALL_CLIP,
        "cases": cases,
        "tokens": importlib.import_module("clip").tokenize([DESCRIPTION]).tolist(),
        "versions": official.VERSIONS,
    }
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    seeded.save("optimization", settings, arrays)


if __name__ == "__main__":
    app.run(main)
