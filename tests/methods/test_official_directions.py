import functools

import converted
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from ckpt_convert import clip as clip_conversion
from ckpt_convert import stylegan2
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import Tokenizer
from styleclip_jax.methods.directions import edit_with_direction, text_direction
from styleclip_jax.methods.relevance import build_directions, unit_rows
from styleclip_jax.models import DirectionsConfig
from styleclip_jax.models.directions import channel_widths
from styleclip_jax.models.stylegan2 import conv_entries

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GOLDEN = seeded.load("directions")
CASES = GOLDEN.settings["cases"]
official = functools.partial(converted.official, "directions")


class GoldenTokenizer(Tokenizer):
    """Knows the sentences of the golden texts, and no others."""

    def __init__(self):
        self.tokens = {
            template.format(text): row
            for text, rows in GOLDEN.settings["tokens"].items()
            for template, row in zip(IMAGENET_TEMPLATES, rows, strict=True)
        }

    def __call__(self, texts):
        return np.array([self.tokens[text] for text in texts], np.int32)


def test_relevance_is_the_official_mean_of_unit_changes():
    features = GOLDEN.input("features").astype(np.float64)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    changes = features[:, :, 1] - features[:, :, 0]
    relevance = unit_rows(np.sum([unit_rows(x) for x in np.moveaxis(changes, 1, 0)], axis=0))
    np.testing.assert_allclose(relevance, GOLDEN["relevance"], atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_text_direction_is_the_official_one(case):
    text, neutral, _, _ = CASES[case]
    clip, tokenizer = official("clip", clip_conversion.convert), GoldenTokenizer()
    dt = text_direction(clip, tokenizer, text, neutral, IMAGENET_TEMPLATES)
    np.testing.assert_allclose(dt, GOLDEN[f"{case}.dt"], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_styles_and_image_are_the_official_ones(case):
    _, _, threshold, strength = CASES[case]
    generator = official("generator", stylegan2.convert)
    widths = channel_widths(generator.config, "stylespace")
    scales = [abs(GOLDEN.input(f"std_{i}")) for i in conv_entries(generator.config.style_dims)]
    config = DirectionsConfig(widths, GOLDEN.settings["clip"]["embed_dim"])
    directions = build_directions(config, GOLDEN["relevance"], np.concatenate(scales))
    w_plus, dt = jnp.asarray(GOLDEN.input("w_plus")), jnp.asarray(GOLDEN[f"{case}.dt"])
    edit = edit_with_direction(generator, directions, w_plus, dt, strength, threshold)
    assert int(edit.changed) == int(GOLDEN[f"{case}.changed"])
    styles = np.concatenate(jax.tree.leaves(edit.styles), axis=1)
    assert_close(styles, GOLDEN[f"{case}.styles"])
    assert_close(np.moveaxis(np.asarray(edit.images), -1, 1), GOLDEN[f"{case}.image"])


def assert_close(ours, official):
    assert np.abs(ours - official).max() <= 1e-4 * np.abs(official).max()
