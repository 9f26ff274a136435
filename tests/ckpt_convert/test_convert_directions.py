import pickle

import numpy as np
import pytest

from ckpt_convert import __main__, directions, formats
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import fingerprint, load_directions
from styleclip_jax.models.directions import channel_widths
from styleclip_jax.models.stylegan2 import conv_entries


@pytest.fixture
def source(tmp_path):
    """Writes an fs3.npy."""

    def write(array) -> formats.SourceFile:
        np.save(tmp_path / "fs3.npy", array)
        return formats.read(tmp_path / "fs3.npy")

    return write


def relevance(channels, embed=4):
    return np.random.default_rng(0).normal(size=(channels, embed))


@pytest.mark.parametrize(("channels", "layers"), [(6048, 17), (5376, 11)])
def test_the_published_shapes_are_those_of_the_official_generator(channels, layers, source):
    array = relevance(channels)
    conversion = directions.convert(source(array))
    config = conversion.model.config
    assert len(config.widths) == layers and config.channels == channels
    assert not config.scaled and conversion.model.scales is None
    assert "no scales" in conversion.notes[0]
    np.testing.assert_allclose(conversion.model.relevance[...], array, rtol=1e-6)


def test_the_command_line_takes_scales_from_the_official_file(
    generator, generator_path, tmp_path, source, capsys
):
    widths = channel_widths(generator.config, "stylespace")
    source(relevance(sum(widths)))
    styles = [np.full(width, i, np.float32) for i, width in enumerate(generator.config.style_dims)]
    with (tmp_path / "S_mean_std").open("wb") as file:
        pickle.dump([[-style for style in styles], styles], file)
    arguments = ["directions", tmp_path / "fs3.npy", tmp_path / "out"]
    options = [f"--generator={generator_path}", f"--scales={tmp_path / 'S_mean_std'}"]
    assert __main__.main([*map(str, arguments), *options]) == 0, capsys.readouterr().err
    loaded = load_directions(tmp_path / "out")
    expected = np.concatenate([styles[i] for i in conv_entries(generator.config.style_dims)])
    assert loaded.scales is not None
    np.testing.assert_array_equal(loaded.scales[...], expected)
    assert loaded.config.generator == fingerprint(generator)


def test_without_that_file_scales_are_measured_on_the_generator(generator, source):
    widths = channel_widths(generator.config, "stylespace")[:3]
    model = directions.convert(source(relevance(sum(widths))), generator=generator).model
    assert model.config.widths == widths and np.all(model.scales[...] > 0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (relevance(6047), "6047 channels, expected 512, "),
        (np.ones((6048, 4, 4)), r"expected an array \(channels, features\)"),
        (np.ones((6048, 4), int), r"expected an array \(channels, features\)"),
        (np.full((6048, 4), np.nan), "NaN"),
    ],
)
def test_invalid_directions_are_refused(array, message, source):
    with pytest.raises(InputError, match=message):
        directions.convert(source(array))


def test_scales_of_other_layers_are_refused(source):
    scales = formats.SourceFile("S_mean_std", "pickle", {"1.0": np.ones(3)}, {}, {})
    with pytest.raises(InputError, match="expected S_mean_std, with 512"):
        directions.convert(source(relevance(6048)), scales)


@pytest.mark.parametrize("damage", [lambda x: x[:100], lambda x: x[:50] + b"\xff" * 20 + x[70:]])
def test_a_damaged_npy_file_is_refused(damage, source, tmp_path):
    source(relevance(6048))
    path = tmp_path / "fs3.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="truncated or damaged"):
        formats.read(path)
