import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded
import torch

from ckpt_convert import formats, stylegan2, tables
from styleclip_jax.errors import InputError
from styleclip_jax.models.stylegan2 import GeneratorConfig

GOLDEN = seeded.load("stylegan2")
SMALL = "rosinality_64"
SMALL_NVIDIA = "nvidia_64"

synthesize = jax.jit(lambda model, w_plus: model(w_plus))


def tensors(weights):
    return {key: torch.tensor(value) for key, value in weights.items()}


def assert_same_arrays(model, other):
    for one, two in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


def assert_golden_config(model, name):
    config = GeneratorConfig(**GOLDEN.settings["configs"][name])
    # Different bases may give the same channels.
    assert model.config == dataclasses.replace(config, channel_base=model.config.channel_base)
    assert model.config.style_dims == config.style_dims


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_rosinalitys_file_is_converted(zipped, source, tmp_path):
    weights, mean = GOLDEN.weights(SMALL), torch.randn(512)
    content = {"g_ema": tensors(weights), "latent_avg": mean}
    path = tmp_path / "generator.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    conversion = stylegan2.convert(formats.read(path))
    assert not conversion.notes
    assert_golden_config(conversion.model, SMALL)
    # The tests of the model check the images.
    from_memory = stylegan2.convert(source(weights | {"latent_avg": mean.numpy()})).model
    assert_same_arrays(conversion.model, from_memory)


@pytest.mark.parametrize("name", ["nvidia_clamped", "nvidia_unclamped"])
def test_nvidias_pickle_gives_the_official_images(name, nvidia_pickle):
    weights = GOLDEN.weights(name)
    clamp = GOLDEN.settings["configs"][name]["conv_clamp"]
    layers = {key.rpartition(".")[0] for key in weights}
    attributes = {
        f"{layer}.conv_clamp": clamp for layer in layers if re.search(r"(conv\d|torgb)$", layer)
    }
    attributes |= {"mapping.fc0.bias_gain": np.float64(0.01), "synthesis.b8.architecture": "skip"}
    model = stylegan2.convert(formats.read(nvidia_pickle(weights, attributes))).model
    assert_golden_config(model, name)
    w_plus = jnp.asarray(GOLDEN.input(f"{name}.w_plus"))
    expected = GOLDEN[f"{name}.image"].transpose(0, 2, 3, 1)
    error = np.abs(synthesize(model, w_plus) - expected).max()
    assert error < 1e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(model.mean_w[...], weights["mapping.w_avg"])


def test_a_bare_state_dict_and_a_training_checkpoint_give_the_same_generator(source):
    weights = GOLDEN.weights(SMALL)
    mean = {"latent_avg": np.ones((1, 512), np.float32)}
    bare = stylegan2.convert(source(weights | mean)).model
    training = {f"g_ema.{key}": value for key, value in weights.items()} | mean
    training |= {f"{part}.conv1.conv.weight": np.zeros(3) for part in ("g", "d", "g_optim")}
    assert_same_arrays(bare, stylegan2.convert(source(training)).model)


def test_without_latent_avg_the_mean_of_mapped_samples_is_taken(source, monkeypatch):
    monkeypatch.setattr(stylegan2, "MEAN_SAMPLES", 500)
    conversion = stylegan2.convert(source(GOLDEN.weights(SMALL)))
    model = conversion.model
    samples = model.mapping(jax.random.normal(jax.random.key(5), (500, 512)))
    deviation = samples.std(0) * np.sqrt(2 / 500)
    assert np.all(np.abs(model.mean_w[...] - samples.mean(0)) < 6 * deviation)
    assert "latent_avg" in conversion.notes[0]


@pytest.mark.parametrize(
    ("name", "layout", "prefix", "resolution"),
    [
        ("stylegan2_rosinality_1024", stylegan2.ROSINALITY, "g_ema.", 1024),
        ("stylegan2_rosinality_256", stylegan2.ROSINALITY, "g_ema.", 256),
        ("stylegan2_nvidia_1024", stylegan2.NVIDIA, "G_ema.", 1024),
    ],
)
def test_every_key_of_the_official_files_is_converted(name, layout, prefix, resolution, manifest):
    source = manifest(name, prefix)
    if layout is stylegan2.ROSINALITY:
        source.tensors["latent_avg"] = np.broadcast_to(np.float32(0), 512)
    table = stylegan2.make_table(source, layout, prefix)
    config = stylegan2.infer_config(source, table, prefix)
    assert config == GeneratorConfig(resolution=resolution)
    shapes = seeded.parameter_shapes(stylegan2.Generator, config)
    assert set(tables.apply_table(source, table, layout.ignored, shapes)) == set(shapes)


def test_all_missing_unexpected_and_misshapen_keys_are_listed(source):
    weights = GOLDEN.weights(SMALL)
    del weights["style.3.bias"], weights["to_rgbs.1.conv.weight"]
    weights["convs.2.noise.weight"] = np.zeros((1, 2))
    weights["noises.noise_3"] = np.zeros((1, 1, 5, 5))
    weights["something.else"] = np.zeros(1)
    with pytest.raises(InputError) as error:
        stylegan2.convert(source(weights))
    message = str(error.value)
    assert "2 keys missing (style.3.bias, to_rgbs.1.conv.weight)" in message
    assert "1 key unexpected (something.else)" in message
    assert "2 keys of the wrong shape (convs.2.noise.weight (1, 2)" in message
    assert "noises.noise_3 (1, 1, 5, 5) for synthesis.convs.3.noise (16, 16)" in message


def test_a_long_list_of_keys_is_cut(source):
    weights = GOLDEN.weights(SMALL) | {f"extra.{i}": np.zeros(1) for i in range(50)}
    with pytest.raises(InputError, match=r"50 keys unexpected \(extra.0, .* and 42 more\)"):
        stylegan2.convert(source(weights))


def test_a_last_layer_that_is_missing_altogether_is_listed(source):
    weights = GOLDEN.weights(SMALL)
    kept = {key: value for key, value in weights.items() if not key.startswith("convs.7.")}
    with pytest.raises(InputError, match=r"5 keys missing \(convs\.7\.conv\.weight"):
        stylegan2.convert(source(kept))


@pytest.mark.parametrize(
    ("tensors", "values", "message"),
    [
        ({"mapping.embed.weight": np.zeros((64, 10))}, {}, "conditional"),
        ({}, {"synthesis.b8.architecture": "resnet"}, "'resnet'"),
        ({}, {"synthesis.b16.conv1.activation": "relu"}, "'relu'"),
        (
            {"synthesis.b8.resample_filter": np.outer([1, 2, 2, 1], [1, 2, 2, 1]) / 36},
            {},
            "resample_filter has an unsupported value",
        ),
        ({}, {"mapping.fc0.bias_gain": 0.0}, "mapping_lr_multiplier is 0.0"),
        ({}, {"mapping.fc0.bias_gain": None}, "NoneType"),
        ({}, {"mapping.fc0.bias_gain": 10**400}, "too large"),
        ({}, {"synthesis.b8.conv0.conv_clamp": 10**400}, "too large"),
        (
            {},
            {"synthesis.b8.conv0.conv_clamp": 256, "synthesis.b8.torgb.conv_clamp": None},
            "conv_clamp values",
        ),
    ],
)
def test_generators_of_another_kind_are_refused(tensors, values, message, source):
    weights = GOLDEN.weights(SMALL_NVIDIA) | tensors
    with pytest.raises(InputError, match=message):
        stylegan2.convert(source(weights, **values))


def test_another_blur_is_refused(source):
    weights = GOLDEN.weights(SMALL)
    key = next(key for key in weights if key.endswith("blur.kernel"))
    with pytest.raises(InputError, match=f"{key} has an unsupported value"):
        stylegan2.convert(source(weights | {key: np.ones((4, 4))}))


def test_channels_that_follow_no_rule_are_refused(source):
    weights = GOLDEN.weights(SMALL)
    weights["convs.3.activate.bias"] = np.zeros(7)
    with pytest.raises(InputError, match=r"16: 7.*channel_base"):
        stylegan2.convert(source(weights))


def test_stylegan3_and_foreign_files_are_refused(source):
    with pytest.raises(InputError, match="StyleGAN3"):
        stylegan2.convert(source({"G_ema.synthesis.input.freqs": np.zeros((3, 2))}))
    with pytest.raises(InputError, match=r"'visual\.conv1\.weight'"):
        stylegan2.convert(source({"visual.conv1.weight": np.zeros(1)}))
    with pytest.raises(InputError, match="it has no tensors"):
        stylegan2.convert(source({}))


def test_an_impossible_size_is_refused(source):
    weights = GOLDEN.weights(SMALL)
    tiny = {key: value for key, value in weights.items() if not re.match("convs|to_rgbs", key)}
    with pytest.raises(InputError, match="resolution is 4"):
        stylegan2.convert(source(tiny))
