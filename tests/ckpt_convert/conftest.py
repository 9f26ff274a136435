"""Writes source files with PyTorch, and NVIDIA's pickles with stand-in modules."""

import json
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ckpt_convert.formats import SourceFile

TESTS = Path(__file__).parents[1]
BUFFERS = ("noise_const", "resample_filter", "w_avg")


class EasyDict(dict):
    """Stands in for NVIDIA's dictionary class."""


class PersistentModule(torch.nn.Module):
    """Pickles as `torch_utils.persistence` does: source code and state in one argument."""

    module_src = ""

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.module_src,
            "class_name": "Generator",
            "state": self.__dict__,
        }
        return _reconstruct_persistent_obj, (meta,), None


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the tests only write this")


@pytest.fixture
def nvidia_pickle(monkeypatch, tmp_path) -> Callable[..., Path]:
    """Writes a network pickle with the given tensors and attributes of ``G_ema``."""
    for name, content in {
        "torch_utils": {},
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib": {},
        "dnnlib.util": {"EasyDict": EasyDict},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")

    def write(
        tensors: Mapping[str, np.ndarray],
        attributes: Mapping[str, Any] | None = None,
        module_src: str = "raise AssertionError('executed')",
    ) -> Path:
        monkeypatch.setattr(PersistentModule, "module_src", module_src)
        network = _module_tree(tensors, attributes or {})
        path = tmp_path / "network.pkl"
        content = {
            "G": network,
            "G_ema": network,
            "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset"),
            "augment_pipe": None,
        }
        path.write_bytes(pickle.dumps(content))
        return path

    return write


def _module_tree(
    tensors: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> PersistentModule:
    root = PersistentModule()

    def find(path: str) -> tuple[PersistentModule, str]:
        *parents, name = path.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, PersistentModule())
            child = getattr(module, parent)
            assert isinstance(child, PersistentModule)
            module = child
        return module, name

    for path, array in tensors.items():
        module, name = find(path)
        if name in BUFFERS:
            module.register_buffer(name, torch.tensor(array))
        else:
            module.register_parameter(name, torch.nn.Parameter(torch.tensor(array)))
    for path, value in attributes.items():
        module, name = find(path)
        setattr(module, name, value)
    return root


@pytest.fixture
def manifest() -> Callable[..., SourceFile]:
    """An official checkpoint's keys and shapes with zeros, which take no memory."""

    def read(name: str, prefix: str = "", **changes: Any) -> SourceFile:
        entries = json.loads((TESTS / "ckpt_convert/manifests" / f"{name}.json").read_text())
        tensors = {}
        for key, (shape, dtype) in entries.items():
            array = np.broadcast_to(np.zeros((), dtype), shape)
            if key.endswith(("resample_filter", ".kernel")):
                array = np.outer([1, 3, 3, 1], [1, 3, 3, 1])
            tensors[prefix + key] = array
        return SourceFile(name, "pytorch", tensors, {}, {})._replace(**changes)

    return read


@pytest.fixture
def source() -> Callable[..., SourceFile]:
    """A source from memory."""

    def make(tensors: Mapping[str, np.ndarray], **values: Any) -> SourceFile:
        return SourceFile("source", "pytorch", dict(tensors), values, {})

    return make


@pytest.fixture
def write_hugging_face_clip() -> Callable[..., Path]:
    """Writes a directory with a small CLIP in Hugging Face's layout."""

    def write(path: Path, vocab_size: int) -> Path:
        width, rng = 8, np.random.default_rng(0)
        shapes = {
            "logit_scale": (),
            "visual_projection.weight": (6, width),
            "text_projection.weight": (6, width),
            "vision_model.embeddings.class_embedding": (width,),
            "vision_model.embeddings.patch_embedding.weight": (width, 3, 4, 4),
            "vision_model.embeddings.position_embedding.weight": (5, width),
            "text_model.embeddings.token_embedding.weight": (vocab_size, width),
            "text_model.embeddings.position_embedding.weight": (7, width),
        }
        for norm in (
            "vision_model.pre_layrnorm",
            "vision_model.post_layernorm",
            "text_model.final_layer_norm",
        ):
            shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        for tower in ("vision_model", "text_model"):
            block = f"{tower}.encoder.layers.0"
            for name, inputs, outputs in (
                *((f"self_attn.{part}_proj", width, width) for part in ("q", "k", "v", "out")),
                ("mlp.fc1", width, 4 * width),
                ("mlp.fc2", 4 * width, width),
            ):
                shapes[f"{block}.{name}.weight"] = (outputs, inputs)
                shapes[f"{block}.{name}.bias"] = (outputs,)
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        path.mkdir()
        save_file(
            {key: np.asarray(rng.normal(size=shape), np.float32) for key, shape in shapes.items()},
            path / "model.safetensors",
        )
        return path

    return write
