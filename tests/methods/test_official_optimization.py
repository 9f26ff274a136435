import functools

import converted
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from ckpt_convert import arcface as arcface_conversion
from ckpt_convert import clip as clip_conversion
from ckpt_convert import stylegan2
from styleclip_jax.methods.optimization import OptimizeConfig, edit_latents
from styleclip_jax.models import CLIP

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GOLDEN = seeded.load("optimization")
CASES = GOLDEN.settings["cases"]
official = functools.partial(converted.official, "optimization")


@pytest.mark.parametrize("case", CASES)
def test_five_steps_are_the_official_ones(case):
    arguments = CASES[case]
    generator = official("generator", stylegan2.convert)
    clip = official("clip", clip_conversion.convert)
    arcface = official("arcface", arcface_conversion.convert) if arguments["id_lambda"] else None
    start = jnp.asarray(GOLDEN.input(arguments["latents"]))
    if arguments["mode"] == "free_generation":
        start = jnp.broadcast_to(start[:, None], (1, generator.num_layers, 512))
    text = jax.jit(CLIP.encode_text)(clip, jnp.asarray(GOLDEN.settings["tokens"]))
    config = OptimizeConfig(
        steps=arguments["step"],
        learning_rate=arguments["lr"],
        l2_lambda=arguments["l2_lambda"],
        id_lambda=arguments["id_lambda"],
        space="stylespace" if arguments["work_in_stylespace"] else "w_plus",
        mode="edit" if arguments["mode"] == "edit" else "generate",
    )
    history, losses = [], []

    def record(step, loss, latents):
        history.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(latents)]))
        losses.append(loss[0])
        return step == 5

    edit_latents(
        generator, clip, start, text, config, arcface, on_progress=record, progress_every=1
    )
    np.testing.assert_allclose(losses, GOLDEN[f"{case}.losses"], rtol=1e-3)
    ours, theirs = np.stack(history), GOLDEN[f"{case}.latents"]
    every = 1 if config.space == "stylespace" else 4
    assert relative_error(ours[:, ::every], theirs) <= 1e-3
    assert relative_error(ours[-1], GOLDEN[f"{case}.final"]) <= 1e-3


def relative_error(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()
