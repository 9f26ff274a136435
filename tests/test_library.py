"""The package as another program uses it."""

import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import styleclip_jax as sc
from styleclip_jax.card import main
from styleclip_jax.io.checkpoints import flatten
from styleclip_jax.models import ArcFace, ArcFaceConfig

# Importing JAX alone sets variables.
IMPORT = """
import logging, os, warnings
import jax, flax.nnx
before = dict(os.environ), list(logging.root.handlers), logging.root.level
import styleclip_jax
assert (dict(os.environ), logging.root.handlers, logging.root.level) == before
"""


def test_importing_the_package_logs_nothing_and_changes_no_variable():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_exported_name_exists_and_is_documented():
    for name in set(sc.__all__) - {"models", "__version__", "AVATARS_NEUTRAL"}:
        assert getattr(sc, name).__doc__, name


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(1e-2), optax.adamw(1e-2, mask=sc.parameter_mask)],
    ids=["adam", "adamw"],
)
def test_an_optimizer_of_a_whole_model_moves_its_parameters_and_no_buffer(generator, optimizer):
    @jax.jit
    def step(generator, z):
        def loss(generator):
            return jnp.mean(jnp.square(generator(generator.map(z, truncation=0.5))))

        updates, _ = optimizer.update(
            jax.grad(loss)(generator), optimizer.init(generator), generator
        )
        return optax.apply_updates(generator, updates)

    z = jax.random.normal(jax.random.key(0), (2, generator.config.z_dim))
    before, after = flatten(generator), flatten(step(generator, z))
    still = {name for name in before if np.array_equal(before[name], after[name])}
    assert still == {name for name in before if name.endswith(("noise", "mean_w"))}


def wrong_inputs():
    """By name: a call with the models ``generator``, ``clip`` and ``arcface``, and the message."""
    nchw, small = jnp.zeros((2, 3, 32, 32)), jnp.zeros((2, 16, 16, 3))
    text = jnp.ones((1, 16))
    square = r"expected \(batch, height, height, 3\): square, with the channels last"
    return {
        "z": (lambda g, c, a: g.map(jnp.zeros((2, 7))), r"z has shape \(2, 7\), .* 12\)"),
        "one z": (lambda g, c, a: g.map(jnp.zeros(12)), r"z has shape \(12,\), .* 12\)"),
        "clip_loss": (lambda g, c, a: sc.clip_loss(c, nchw, text), square),
        "id_loss": (lambda g, c, a: sc.id_loss(a, nchw, nchw), square),
        "clip": (lambda g, c, a: c.encode_image(small), r"pixels .* \(batch, 32, 32, 3\)"),
        "arcface": (lambda g, c, a: a(nchw), r"images .* \(batch, 16, 16, 3\)"),
    }


@pytest.mark.parametrize("name", wrong_inputs())
def test_arrays_of_another_layout_or_width_are_input_errors(
    generator, clip, random_model, without_type_checks, name
):
    config = ArcFaceConfig(image_size=16, stem_width=16, stages=((16, 1),))
    arcface = random_model(ArcFace, config, seed=3)
    call, message = wrong_inputs()[name]
    with pytest.raises(sc.InputError, match=message):
        call(generator, clip, arcface)


def test_another_dtype_is_an_input_error(generator, generator_path, tmp_path):
    for dtype in ("float23", "int32", "float16"):
        with pytest.raises(sc.InputError, match=f"dtype is {dtype}, expected float32 or bfloat16"):
            sc.load_generator(generator_path, dtype)
    with pytest.raises(sc.InputError, match="dtype is int8, expected float32 or bfloat16 or"):
        sc.save_model(tmp_path / "generator", generator, dtype="int8")
    assert not (tmp_path / "generator").exists()


def test_a_clip_is_saved_with_its_tokenizer(clip, clip_path, tmp_path):
    tokenizer = sc.load_tokenizer(clip_path)
    sc.save_model(tmp_path / "clip", clip, tokenizer.files)
    copy = sc.load_tokenizer(tmp_path / "clip")
    np.testing.assert_array_equal(copy(["a hat!"]), tokenizer(["a hat!"]))


def test_the_mappers_that_ship_are_listed_and_load(capsys):
    names = sc.pretrained_mappers()
    generator = sc.fingerprint(sc.load_generator())
    assert "sunglasses" in names and names == sorted(names)
    for name in names:
        mapper = sc.load_mapper(name)
        for_any_text = isinstance(mapper, sc.models.DeltaMapper)
        assert for_any_text == (name == "any_text") == (mapper.config.card.text is None)
        assert mapper.config.card.generator == generator
        assert main([name]) == 0
        text = f"text                       {mapper.config.card.text}\n"
        assert (text in capsys.readouterr().out) != for_any_text
    assert main(["moonglasses"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no mapper moonglasses")


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: sc.models.Generator(
            sc.models.GeneratorConfig(resolution=8, w_dim=4, channel_base=32), rngs=rngs
        ),
        lambda rngs: sc.models.LevelsMapper(sc.models.MapperConfig(4, 6), rngs=rngs),
        lambda rngs: sc.models.ArcFace(
            sc.models.ArcFaceConfig(stem_width=16, stages=((16, 1),)), rngs=rngs
        ),
    ],
    ids=["generator", "mapper", "arcface"],
)
def test_new_parameters_have_strong_types(make):
    # A step makes weak types strong, and would be compiled twice.
    assert not any(x.weak_type for x in jax.tree.leaves(make(nnx.Rngs(0))))
