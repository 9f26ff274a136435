"""The documentation's reference is complete."""

import re
from pathlib import Path
from typing import Any

import styleclip_jax
from styleclip_jax import models

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
