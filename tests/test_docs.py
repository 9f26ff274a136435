"""The documentation's reference is complete."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

import styleclip_jax
from styleclip_jax import models
from styleclip_jax.io import checkpoints

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def test_the_reference_has_every_public_name():
    text = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    described = set(re.findall(r"styleclip_jax\.(?:models\.)?(\w+)\b", text))
    names = {*styleclip_jax.__all__, *models.__all__} - {"__version__", "models"}
    assert names - described == set(), "add '::: styleclip_jax.NAME' to a page of docs/reference"


def test_the_example_of_extension_points_runs(monkeypatch, generator, clip, clip_path):
    tokenizer = styleclip_jax.load_tokenizer(clip_path)
    for name, small in (("generator", generator), ("clip", clip), ("tokenizer", tokenizer)):
        monkeypatch.setattr(styleclip_jax, f"load_{name}", lambda small=small: small)
    page = (REFERENCE.parent / "extending.md").read_text()
    edit, train = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    # The small CLIP reads 18 characters.
    program = (edit + train).replace("a person with sunglasses", "a hat")
    names: dict[str, Any] = {}
    exec(program.replace("a person with a beard", "a beard").replace("steps=40", "steps=4"), names)
    assert names["result"].losses.shape == (4, 2) and callable(names["step"])


def test_the_example_of_compilation_and_export_runs(monkeypatch, generator, random_model):
    # With a card, as those that ship, and as in a new process.
    card = models.MapperCard(generator=styleclip_jax.fingerprint(generator))
    config = models.MapperConfig(generator.config.w_dim, generator.num_layers, card=card)
    mapper = random_model(models.LevelsMapper, config, seed=0)
    monkeypatch.setattr(styleclip_jax, "load_mapper", lambda _: mapper)
    monkeypatch.setattr(checkpoints, "_fingerprints", {})
    page = (REFERENCE.parent / "guide" / "python.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (program,) = (text for text in programs if "jax.export" in text)
    names: dict[str, Any] = {"jax": jax, "sc": styleclip_jax, "generator": generator}
    exec(program, names)
    exported = jax.export.deserialize(names["exported"].serialize())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    expected = names["edit"](names["z"])
    for images in (names["compiled"](names["z"]), exported.call(names["z"])):
        np.testing.assert_allclose(images, expected, atol=1e-5)
