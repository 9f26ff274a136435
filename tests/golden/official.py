"""Runs the official PyTorch code, unedited, on any machine.

The official repositories expect CUDA, torchvision, TensorBoard and downloaded checkpoints. Here
their imports get stand-ins, ``cuda`` means the CPU if there is no GPU, and checkpoints come from
memory. `optimize` and `train` run the official loops themselves and report every step.
"""

import contextlib
import importlib
import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import seeded
import torch

VERSIONS = {"torch": torch.__version__, "numpy": np.__version__}

# A CLIP in OpenAI's proportions, small enough for tests; fields of our CLIPConfig.
SMALL_CLIP = {
    "image_size": 224,
    "patch_size": 32,
    "vision_width": 128,
    "vision_layers": 2,
    "vision_heads": 2,
    "text_width": 128,
    "text_layers": 2,
    "text_heads": 2,
    "embed_dim": 64,
    "context_length": 77,
    "vocab_size": 49408,
}

_OPTIONAL = (
    "ftfy",
    "requests",
    "torchvision",
    "torchvision.models",
    "torchvision.transforms",
    "torchvision.utils",
    "torch.utils.tensorboard",
)


class _StandIn(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=name)

    @staticmethod
    def fix_text(text: str) -> str:
        """Replaces ftfy.fix_text for texts that need no fixing."""
        if not text.isascii():
            raise ModuleNotFoundError("tokenizing other than ASCII text needs the package ftfy")
        return text


def prepare(*checkouts: str) -> None:
    """Makes the packages of the official checkouts importable, on the CPU if there is no GPU."""
    sys.path[:0] = [str(Path(checkout).resolve(strict=True)) for checkout in checkouts]
    for name in _OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = _StandIn(name)
    if not torch.cuda.is_available():
        for kind in (torch.Tensor, torch.nn.Module):
            mock.patch.object(kind, "cuda", lambda self, *_, **__: self).start()
            mock.patch.object(kind, "to", _never_to_cuda(kind.to)).start()


def _never_to_cuda(to: Callable) -> Callable:
    def stay(self, *arguments, **options):
        arguments = ["cpu" if str(item).startswith("cuda") else item for item in arguments]
        return to(self, *arguments, **options)

    return stay


def fill(module: torch.nn.Module, seed: int) -> dict[str, Any]:
    """Loads seeded weights into a module; returns the seed and shapes, for the golden file."""
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    values = seeded.state_dict(shapes, seed)
    module.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
    return {"seed": seed, "shapes": shapes}


def narrow(generator: type, channel_base: int, channel_max: int) -> type:
    """Returns rosinality's ``Generator`` with NVIDIA's rule for the channels, for small tests."""

    class NarrowGenerator(generator):
        @property
        def channels(self) -> dict[int, int]:
            return {2**i: min(channel_base >> i, channel_max) for i in range(2, 11)}

        @channels.setter
        def channels(self, _: dict[int, int]) -> None:
            """Ignores the table that the official constructor assigns."""

    return NarrowGenerator


def clip_model(configuration: Mapping[str, int]) -> Any:
    """Returns OpenAI's ``CLIP``, in float32, for the fields of our ``CLIPConfig``."""
    names = {"image_size": "image_resolution", "patch_size": "vision_patch_size"}
    arguments = {
        names.get(name, re.sub("^text_", "transformer_", name)): value
        for name, value in configuration.items()
        if name != "vision_heads"  # always vision_width / 64
    }
    return importlib.import_module("clip.model").CLIP(**arguments).eval()


@contextlib.contextmanager
def _files(contents: Mapping[str, Any]) -> Iterator[None]:
    """Lets official code load the contents by name, write nothing, and print to stderr."""
    with (
        mock.patch("torch.load", lambda name, **_: contents[name]),
        mock.patch("torch.save"),
        contextlib.redirect_stdout(sys.stderr),
    ):
        yield


def optimize(
    arguments: Mapping[str, Any],
    files: Mapping[str, Any],
    clip_model: torch.nn.Module,
    generator: type,
    steps: int,
    on_step: Callable[[list[torch.Tensor], float], None],
) -> torch.Tensor:
    """Runs the ``main`` of optimization/run_optimization.py for its first steps.

    Args:
        arguments: its command line; the checkpoints' names are keys of ``files``.
        files: what ``torch.load`` returns for a name.
        clip_model: in place of the downloaded ViT-B/32.
        generator: the class, official or narrowed.
        steps: how many of the ``arguments["step"]`` steps to run.
        on_step: called after every step with the latents (a list) and the step's total loss.

    Returns:
        What ``main`` returns: the images before (in mode ``edit``) and at the last step.
    """
    script = importlib.import_module("optimization.run_optimization")
    losses = []
    backward = torch.Tensor.backward

    class Adam(torch.optim.Adam):
        def step(self, closure: None = None) -> None:
            super().step(closure)
            on_step(self.param_groups[0]["params"], losses.pop())

    class Progress:
        def __init__(self, steps_to_run: Iterable[int]) -> None:
            self.steps = islice(steps_to_run, steps)

        def __iter__(self) -> Iterator[int]:
            return self.steps

        def set_description(self, _: str) -> None:
            """Shows nothing."""

    def recorded_backward(loss: torch.Tensor) -> None:
        losses.append(loss.item())
        backward(loss)

    with (
        tempfile.TemporaryDirectory() as directory,
        _files(files),
        mock.patch("clip.load", lambda *_, **__: (clip_model, None)),
        mock.patch.object(script, "ensure_checkpoint_exists"),
        mock.patch.object(script, "Generator", generator),
        mock.patch.object(script, "tqdm", Progress),
        mock.patch.object(script.optim, "Adam", Adam),
        mock.patch.object(
            script, "IDLoss", script.IDLoss if arguments["id_lambda"] else mock.Mock()
        ),
        mock.patch.object(torch.Tensor, "backward", recorded_backward),
    ):
        return script.main(
            Namespace(results_dir=directory, save_intermediate_image_every=0, **arguments)
        )


def train(
    options: Mapping[str, Any],
    files: Mapping[str, Any],
    clip_model: torch.nn.Module,
    generator: type,
    batches: list[torch.Tensor],
    on_step: Callable[[torch.nn.Module, dict[str, float]], None],
) -> None:
    """Runs ``Coach.train`` of mapper/training/coach.py, one step for every batch.

    Args:
        options: over the defaults of ``TrainOptions``; checkpoints' names are keys of ``files``.
        files: what ``torch.load`` returns for a name, ``latents`` among them.
        clip_model: in place of the downloaded ViT-B/32.
        generator: the class, official or narrowed.
        batches: in place of the shuffled latents.
        on_step: called after every step with the mapper and the losses before the step.
    """
    train_options = importlib.import_module("mapper.options.train_options").TrainOptions()
    coach_module = importlib.import_module("mapper.training.coach")
    mapper_module = importlib.import_module("mapper.styleclip_mapper")
    with (
        tempfile.TemporaryDirectory() as directory,
        _files(files),
        mock.patch("clip.load", lambda *_, **__: (clip_model, None)),
        mock.patch.object(mapper_module, "Generator", generator),
        mock.patch.object(coach_module.torchvision.utils, "save_image", create=True),
    ):
        parsed = train_options.parser.parse_args(["--description", options["description"]])
        vars(parsed).update(options)
        vars(parsed).update(exp_dir=directory, workers=0, max_steps=len(batches) - 1)
        vars(parsed).update(latents_train_path="latents", latents_test_path="latents")
        coach = coach_module.Coach(parsed)
        coach.train_dataloader, coach.test_dataloader = batches, []
        calc_loss, step, losses = coach.calc_loss, coach.optimizer.step, []

        def recorded_loss(*tensors: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
            loss, named = calc_loss(*tensors)
            losses.append(named)
            return loss, named

        def reported_step() -> None:
            step()
            on_step(coach.net.mapper, losses.pop())

        coach.calc_loss, coach.optimizer.step = recorded_loss, reported_step
        coach.train()
