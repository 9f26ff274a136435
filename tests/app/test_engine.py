import dataclasses
import io
import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from styleclip_jax.app.engine import Engine
from styleclip_jax.app.recipes import Instant, Mapped, Optimized
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_clip, load_directions, load_mapper, save_model
from styleclip_jax.io.latents import load_latents
from styleclip_jax.io.templates import IMAGENET_TEMPLATES
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.methods.delta_editing import edit_with_delta_mapper
from styleclip_jax.methods.directions import NoChannelError, edit_with_direction, text_direction
from styleclip_jax.models import DeltaMapper, LevelsMapper, MapperCard, MapperConfig


@pytest.fixture(scope="module")
def engine(generator_path, long_text_clip_path, directions_path, any_text_path):
    return Engine(
        str(generator_path),
        str(long_text_clip_path),
        {"any": str(any_text_path)},
        directions=str(directions_path),
    )


RECIPE = Instant("a hat", "a face", strength=2.0, threshold=0.2, using="directions")
ANY_TEXT = Instant("a hat", "a face", strength=2.0, threshold=0.01, using="any_text")


def test_edits_with_directions_match_the_library(
    engine, generator, directions_path, long_text_clip_path
):
    start = engine.random_face(0)
    edit = engine.instant(start, RECIPE)
    clip, tokenizer = load_clip(long_text_clip_path), load_tokenizer(long_text_clip_path)
    dt = text_direction(clip, tokenizer, "a hat", "a face", IMAGENET_TEMPLATES)
    expected = edit_with_direction(
        generator,
        load_directions(directions_path),
        jnp.asarray(engine.random_face(0).latents),
        dt,
        2.0,
        0.2,
    )
    for ours, theirs in zip(edit.face.latents, expected.styles, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert edit.changed == int(expected.changed) > 0


def test_edits_with_a_mapper_for_any_text_match_the_library(
    engine, generator, any_text_path, long_text_clip_path
):
    assert engine.instant_methods == ("any_text", "directions")
    edit = engine.instant(engine.random_face(0), ANY_TEXT)
    clip, tokenizer = load_clip(long_text_clip_path), load_tokenizer(long_text_clip_path)
    mapper = load_mapper(any_text_path)
    assert isinstance(mapper, DeltaMapper)
    dt = text_direction(clip, tokenizer, "a hat", "a face", IMAGENET_TEMPLATES)
    latents = jnp.asarray(engine.random_face(0).latents)
    expected = edit_with_delta_mapper(generator, mapper, clip, latents, dt, 2.0, min_change=0.01)
    for ours, theirs in zip(edit.face.latents, expected.styles, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    moved = [a - b for a, b in zip(expected.styles, generator.styles(latents), strict=True)]
    assert edit.changed == sum(np.count_nonzero(np.abs(x) > 1e-3) for x in moved) > 0
    assert edit.changed <= engine.channels("any_text")
    settings = json.loads(engine.settings(edit))
    assert settings["script"] == "apply_mapper.py"
    assert settings["flags"]["mapper"] == [str(any_text_path)]
    assert settings["flags"]["min_change"] == 0.01 and "directions" not in settings["flags"]


def test_the_default_strength_is_that_of_the_mappers_training(
    generator, generator_path, long_text_clip_path, tmp_path
):
    config = MapperConfig(
        generator.config.w_dim, generator.config.num_layers, card=MapperCard(strength=0.4)
    )
    save_model(tmp_path / "beard", LevelsMapper(config, rngs=nnx.Rngs(0)))
    mappers = {"beard": str(tmp_path / "beard")}
    engine = Engine(str(generator_path), str(long_text_clip_path), mappers)
    start = engine.random_face(0)
    edit = engine.mapped(start, Mapped("beard"))
    assert json.loads(engine.settings(edit))["flags"]["strength"] == [0.4]
    half = engine.mapped(start, Mapped("beard", 0.2)).face.latents
    for before, between, after in zip(start.latents, half, edit.face.latents, strict=True):
        np.testing.assert_allclose(2 * (between - before), after - before, atol=1e-4)
    layout = pytest.importorskip("styleclip_jax.app.layout")
    assert layout.mapper_range(engine, "beard") == (-0.8, 0.8, 0.4, 0.02)


def test_stylespace_edits_can_be_chained_with_any_method_and_saved(engine, generator, tmp_path):
    first = engine.instant(engine.random_face(0), RECIPE)
    second = engine.instant(first.face, RECIPE)
    archive = zipfile.ZipFile(io.BytesIO(engine.archive(second)))
    archive.extractall(tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["script"] == "directions.py" and settings["latents"] == "start.npz"
    saved = load_latents(tmp_path / "start.npz", generator)
    for ours, theirs in zip(saved, first.face.latents, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    *_, last = engine.optimize(second.face, Optimized("a beard", "a face", steps=1))
    assert last.edit and isinstance(last.edit.face.latents, tuple)
    assert json.loads(engine.settings(last.edit))["flags"]["space"] == "stylespace"


@pytest.mark.parametrize("using", ["any_text", "directions"])
def test_the_recipe_contains_the_automatic_values(engine, using):
    recipe = engine.instant(engine.random_face(0), Instant("a hat", "a face", using=using)).recipe
    assert isinstance(recipe, Instant)
    assert recipe.strength is not None and recipe.threshold is not None


def test_errors_name_an_unreachable_threshold_and_missing_models(
    engine, generator_path, long_text_clip_path
):
    for recipe in (RECIPE, ANY_TEXT):
        high = dataclasses.replace(recipe, threshold=100.0)
        with pytest.raises(NoChannelError, match="no channel reaches the threshold 100") as failure:
            engine.instant(engine.random_face(0), high)
        low = dataclasses.replace(recipe, threshold=0.99 * float(failure.value.largest))
        assert engine.instant(engine.random_face(0), low).changed
        with pytest.raises(InputError, match="expected at least 0"):
            engine.instant(engine.random_face(0), dataclasses.replace(recipe, threshold=-1.0))
    other = Engine(str(generator_path), str(long_text_clip_path), {})
    with pytest.raises(InputError, match="--directions"):
        other.instant(other.random_face(0), RECIPE)
    with pytest.raises(InputError, match="--mappers_dir"):
        other.instant(other.random_face(0), ANY_TEXT)
