"""The documentation's reference is complete."""

import re
from pathlib import Path

import styleclip_jax
from styleclip_jax import models

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def test_the_reference_has_every_public_name():
    text = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    described = set(re.findall(r"styleclip_jax\.(?:models\.)?(\w+)\b", text))
    names = {*styleclip_jax.__all__, *models.__all__} - {"__version__", "models"}
    assert names - described == set(), "add '::: styleclip_jax.NAME' to a page of docs/reference"
