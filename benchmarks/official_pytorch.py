"""Times the official PyTorch code with random weights, for a comparison on the same machine.

    python benchmarks/official_pytorch.py --styleclip=PATH --clip=PATH
    python benchmarks/official_pytorch.py --styleclip=PATH --clip=PATH \
        --resolution=1024 --cases=optimization_step --repeats=3

The paths are checkouts of orpatashnik/StyleCLIP and openai/CLIP; PyTorch is needed, CUDA and
torchvision are not. The official loops run unchanged; on a GPU, CLIP is in float16, as with the
official loader. Prints one line of JSON per case: the median of all runs but the first.
"""

import importlib
import itertools
import json
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from absl import app, flags

# Substitutes for imports of the official code, shared with the scripts in tests/golden.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "golden"))
official: Any = importlib.import_module("official")

VIT_B32 = {
    "image_size": 224,
    "patch_size": 32,
    "vision_width": 768,
    "vision_layers": 12,
    "vision_heads": 12,
    "text_width": 512,
    "text_layers": 12,
    "text_heads": 8,
    "embed_dim": 512,
    "context_length": 77,
    "vocab_size": 49408,
}

_STYLECLIP = flags.DEFINE_string("styleclip", None, "Checkout of StyleCLIP.", required=True)
_CLIP = flags.DEFINE_string("clip", None, "Checkout of openai/CLIP.", required=True)
_RESOLUTION = flags.DEFINE_multi_integer("resolution", [256, 1024], "Resolutions of the generator.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs after one that is not timed.")
_BATCH = flags.DEFINE_integer("mapper_batch", 2, "Batch size of the mapper's training.")
_IDENTITY = flags.DEFINE_bool("identity_loss", True, "Train the mapper with the identity loss.")


class Networks:
    """The official networks with their random initialization."""

    def __init__(self, resolution: int) -> None:
        """Builds them; the checkpoints that the official scripts load are in ``files``."""
        self.generator_class = importlib.import_module("models.stylegan2.model").Generator
        self.generator = self.generator_class(resolution, 512, 8).eval().cuda()
        self.resolution = resolution
        self.layers = self.generator.n_latent
        self.clip = official.clip_model(VIT_B32)
        if torch.cuda.is_available():
            build_model = importlib.import_module("clip.model").build_model
            self.clip = build_model(self.clip.state_dict()).cuda()
        backbone = importlib.import_module("models.facial_recognition.model_irse").Backbone
        self.files = {
            "generator": {"g_ema": self.generator.state_dict()},
            "arcface": backbone(112, 50, mode="ir_se").state_dict(),
        }

    def latents(self, batch: int) -> torch.Tensor:
        """Returns W+ latents (batch, layers, 512)."""
        return torch.randn(batch, self.layers, 512).cuda()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _intervals(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


def _calls(call: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats + 1):
        call()
        times.append(_now())
    return _intervals(times)


def generator_forward(networks: Networks, repeats: int) -> list[float]:
    """Times an image from one W+ latent."""
    latents = networks.latents(1)
    with torch.no_grad():
        return _calls(
            lambda: networks.generator([latents], input_is_latent=True, randomize_noise=False),
            repeats,
        )


def optimization_step(networks: Networks, repeats: int) -> list[float]:
    """Times the steps of optimization/run_optimization.py: one image in W+."""
    arguments = {
        "description": "a person with purple hair",
        "ckpt": "generator",
        "stylegan_size": networks.resolution,
        "lr": 0.1,
        "step": 300,
        "mode": "edit",
        "l2_lambda": 0.008,
        "id_lambda": 0.0,
        "latent_path": "latents",
        "truncation": 0.7,
        "work_in_stylespace": False,
        "ir_se50_weights": "arcface",
    }
    times = []
    official.optimize(
        arguments,
        {**networks.files, "latents": networks.latents(1)},
        networks.clip,
        networks.generator_class,
        repeats + 1,
        lambda *_: times.append(_now()),
    )
    return _intervals(times)


def _options(networks: Networks) -> dict[str, Any]:
    return {
        "description": "a person with purple hair",
        "stylegan_weights": "generator",
        "ir_se50_weights": "arcface",
        "stylegan_size": networks.resolution,
        "batch_size": _BATCH.value,
        "id_lambda": 0.1 if _IDENTITY.value else 0.0,
        "board_interval": 10**9,
        "image_interval": 10**9,
        "val_interval": 10**9,
        "save_interval": 10**9,
    }


def mapper_training_step(networks: Networks, repeats: int) -> list[float]:
    """Times the steps of mapper/training/coach.py: LevelsMapper, Ranger."""
    batches = [networks.latents(_BATCH.value) for _ in range(repeats + 1)]
    times = []
    official.train(
        _options(networks),
        {**networks.files, "latents": batches[0]},
        networks.clip,
        networks.generator_class,
        batches,
        lambda *_: times.append(_now()),
    )
    return _intervals(times)


def mapper_apply(networks: Networks, repeats: int) -> list[float]:
    """Times the edit of one latent by mapper/scripts/inference.py."""
    script = importlib.import_module("mapper.scripts.inference")
    mapper = importlib.import_module("mapper.latent_mappers").LevelsMapper(
        Namespace(no_coarse_mapper=False, no_medium_mapper=False, no_fine_mapper=False)
    )
    network = Namespace(mapper=mapper.eval().cuda(), decoder=networks.generator)
    latents = networks.latents(1)
    return _calls(lambda: script.run_on_batch(latents, network), repeats)


class LPIPS(torch.nn.Module):
    """The distance of the package lpips, with VGG16 and random weights."""

    STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

    def __init__(self) -> None:
        """Builds it with random weights."""
        super().__init__()
        self.stages, channels_in = torch.nn.ModuleList(), 3
        for channels, depth in self.STAGES:
            layers = [torch.nn.MaxPool2d(2)] if len(self.stages) else []
            for _ in range(depth):
                layers += [torch.nn.Conv2d(channels_in, channels, 3, padding=1), torch.nn.ReLU()]
                channels_in = channels
            self.stages.append(torch.nn.Sequential(*layers))
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Returns the distance of each pair, of at most 256 pixels."""
        both = torch.nn.functional.adaptive_avg_pool2d(torch.cat([images, others]), 256)
        distance = torch.zeros((), device=both.device)
        for stage in self.stages:
            both = stage(both)
            one, other = (both / (both.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
            distance = distance + (one - other).square().mean(dim=(1, 2, 3))
        return distance


def _reconstruction_steps(
    networks: Networks, parameters: list[torch.Tensor], latents: torch.Tensor, repeats: int
) -> list[float]:
    lpips, optimizer = LPIPS().cuda(), torch.optim.Adam(parameters, 3e-4)
    target = torch.zeros(1, 3, networks.resolution, networks.resolution).cuda()

    def step() -> None:
        images, _ = networks.generator([latents], input_is_latent=True, randomize_noise=False)
        loss = (images - target).square().mean() + lpips(images, target).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _calls(step, repeats)


def refinement_step(networks: Networks, repeats: int) -> list[float]:
    """Times steps of optimizing a W+ latent, with the official generator; the loop is ours."""
    networks.generator.requires_grad_(False)
    latents = networks.latents(1).requires_grad_()
    return _reconstruction_steps(networks, [latents], latents, repeats)


def tuning_step(networks: Networks, repeats: int) -> list[float]:
    """Times steps of optimizing the official generator's weights; the loop is ours."""
    networks.generator.requires_grad_(True)
    parameters = list(networks.generator.parameters())
    return _reconstruction_steps(networks, parameters, networks.latents(1), repeats)


CASES = {
    "generator_forward": generator_forward,
    "optimization_step": optimization_step,
    "mapper_training_step": mapper_training_step,
    "mapper_apply": mapper_apply,
    "refinement_step": refinement_step,
    "tuning_step": tuning_step,
}
_CASES = flags.DEFINE_multi_enum("cases", list(CASES), list(CASES), "What to time.")


def results() -> Iterator[dict[str, Any]]:
    """Runs the cases and yields what was measured."""
    for resolution in _RESOLUTION.value:
        networks = Networks(resolution)
        for case in _CASES.value:
            seconds = CASES[case](networks, _REPEATS.value)
            yield {
                "name": f"official_{case}_{resolution}",
                "seconds": statistics.median(seconds),
                "repeats": len(seconds),
                "batch": _BATCH.value if case == "mapper_training_step" else 1,
                "device": "cuda" if torch.cuda.is_available() else "cpu",
                "threads": torch.get_num_threads(),
                "clip_dtype": str(networks.clip.dtype).removeprefix("torch."),
                **official.VERSIONS,
            }


def main(_: list[str]) -> None:
    """Prints one line of JSON for each case."""
    official.prepare(_STYLECLIP.value, _CLIP.value)
    torch.manual_seed(0)
    for result in results():
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    app.run(main)
