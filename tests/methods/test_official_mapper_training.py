import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from ckpt_convert import arcface as arcface_conversion
from ckpt_convert import clip as clip_conversion
from ckpt_convert import mapper as mapper_conversion
from ckpt_convert import stylegan2, tables
from ckpt_convert.formats import SourceFile
from styleclip_jax.io.checkpoints import flatten
from styleclip_jax.methods.mapper_training import (
    MapperTrainConfig,
    init_mapper_state,
    make_mapper_train_step,
)
from styleclip_jax.models import Generator, GeneratorConfig
from styleclip_jax.models.clip import CLIP

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GOLDEN = seeded.load("mapper_training")
CASES = GOLDEN.settings["cases"]
METRICS = {
    "loss": "loss",
    "loss_clip": "clip_loss",
    "loss_id": "id_loss",
    "loss_l2_latent": "latent_l2",
}


def source(name, prefix="", **values):
    weights = {prefix + key: array for key, array in GOLDEN.weights(name).items()}
    return SourceFile(name, "pytorch", weights, values, {})


@functools.cache
def official_networks() -> Any:
    """Our generator, CLIP and ArcFace with the weights that the official ones had."""
    config = GeneratorConfig(**GOLDEN.settings["generator"])
    file = source("generator")
    file.tensors["latent_avg"] = np.zeros(config.w_dim, np.float32)
    table = stylegan2.make_table(file, stylegan2.ROSINALITY, "")
    generator = tables.fill(Generator, config, file, table, stylegan2.ROSINALITY.ignored)
    clip = clip_conversion.convert(source("clip")).model
    return generator, clip, arcface_conversion.convert(source("arcface")).model


def official_mapper_source(case):
    options = {"opts.stylegan_size": case["stylegan_size"]}
    return source(case["mapper_type"], "state_dict.mapper.", **options)


@pytest.mark.parametrize("name", sorted(CASES))
def test_steps_are_the_official_ones(name):
    case = CASES[name]
    generator, clip, arcface = official_networks()
    text_features = jax.jit(CLIP.encode_text)(clip, jnp.asarray(GOLDEN.settings["tokens"]))
    config = MapperTrainConfig(
        optimizer=case["optim_name"],
        learning_rate=case["learning_rate"],
        clip_lambda=case["clip_lambda"],
        id_lambda=case["id_lambda"],
        latent_l2_lambda=case["latent_l2_lambda"],
        strength=GOLDEN.settings["strength"],
    )
    file = official_mapper_source(case)
    mapper: Any = mapper_conversion.convert(file).model
    state = init_mapper_state(mapper, config)
    step = make_mapper_train_step(generator, clip, text_features, config, arcface)
    latents = [np.split(GOLDEN.input(key), case["steps"]) for key in case["inputs"]]
    history = []
    for batch in zip(*latents, strict=True):
        state, metrics = step(state, batch if case["work_in_stylespace"] else batch[0])
        history.append(metrics)

    for official, ours in METRICS.items():
        if f"{name}.{official}" in GOLDEN.arrays:
            losses = [metrics[ours] for metrics in history]
            np.testing.assert_allclose(losses, GOLDEN[f"{name}.{official}"], rtol=1e-3)
    before, after = flatten(mapper), flatten(state.mapper)
    prefix = "state_dict.mapper."
    every = 1 if case["work_in_stylespace"] else 16
    for row in mapper_conversion.make_table(case["mapper_type"], mapper.config, prefix):
        key = row.source.removeprefix(prefix)
        update = row.transform(np.asarray(after[row.target] - before[row.target]))
        norm = GOLDEN[f"{name}.update_norm.{key}"]
        assert abs(np.linalg.norm(update) - norm) <= 1e-3 * norm
        strided = update[::every, ::every] if update.ndim == 2 else update
        official = GOLDEN[f"{name}.update.{key}"]
        assert np.linalg.norm(strided - official) <= 1e-3 * np.linalg.norm(official)
