import argparse

import numpy as np
import pytest
import seeded
import torch

from ckpt_convert import formats, mapper, tables
from styleclip_jax.errors import InputError
from styleclip_jax.models import DeltaMapperConfig, GeneratorConfig, MapperCard
from styleclip_jax.models.mapper import MAPPER_TYPES, MapperConfig

OFFICIAL_STYLE_DIMS = (512,) * 15 + (256,) * 3 + (128,) * 3 + (64,) * 3 + (32,) * 2
OPTIONS = {
    "mapper_type": "LevelsMapper",
    "no_coarse_mapper": False,
    "no_medium_mapper": False,
    "no_fine_mapper": False,
    "work_in_stylespace": False,
    "stylegan_size": 64,
    "device": "cuda:0",
    "checkpoint_path": None,
    "learning_rate": 0.5,
}


def networks(*names, width=6):
    """Four layers for each network, with the official names."""
    tensors = {}
    for name in names:
        for n in range(1, 5):
            tensors[f"{name}.mapping.{n}.weight"] = torch.randn(width, width)
            tensors[f"{name}.mapping.{n}.bias"] = torch.randn(width)
    return tensors


def save(path, tensors, **options):
    state = {f"mapper.{key}": value for key, value in tensors.items()}
    state["decoder.style.1.weight"] = torch.zeros(3)
    torch.save({"state_dict": state, "opts": OPTIONS | options}, path)
    return formats.read(path)


def assert_same_layers(network, tensors, name):
    for n, layer in enumerate(network.layers, start=1):
        np.testing.assert_array_equal(layer.kernel[...], tensors[f"{name}.mapping.{n}.weight"].T)
        np.testing.assert_array_equal(layer.bias[...], tensors[f"{name}.mapping.{n}.bias"])


def test_a_levels_mapper_without_one_group_is_converted(tmp_path):
    tensors = networks("course_mapping", "fine_mapping")
    model = mapper.convert(save(tmp_path / "a.pt", tensors, no_medium_mapper=True)).model
    assert type(model).__name__ == "LevelsMapper"
    assert model.config == MapperConfig(w_dim=6, num_layers=10, medium=False)
    assert model.medium is None
    assert_same_layers(model.coarse, tensors, "course_mapping")
    assert_same_layers(model.fine, tensors, "fine_mapping")


def test_a_single_mapper_is_converted(tmp_path):
    tensors = networks("mapping")
    model = mapper.convert(save(tmp_path / "a.pt", tensors, mapper_type="SingleMapper")).model
    assert type(model).__name__ == "SingleMapper"
    assert_same_layers(model.network, tensors, "mapping")


def test_a_stylespace_mapper_is_converted_with_the_widths_of_all_entries(tmp_path):
    # 16 pixels: the entries of two resolutions above 4, every third one a ToRGB layer's.
    widths = {0: 8, 2: 8, 3: 6, 5: 6, 6: 4}
    tensors = {}
    for c, width in widths.items():
        tensors |= networks(f"mapper_{c}", width=width)
    source = save(tmp_path / "a.pt", tensors, work_in_stylespace=True, stylegan_size=16)
    model = mapper.convert(source).model
    assert type(model).__name__ == "WithoutToRGBStyleSpaceMapper"
    assert model.config.style_dims == (8, 8, 8, 6, 6, 6, 4, 4)
    for c in widths:
        assert_same_layers(model.networks[c], tensors, f"mapper_{c}")


def test_options_may_be_a_namespace_and_keys_replace_missing_ones(tmp_path):
    tensors = networks("medium_mapping")
    state = {f"mapper.{key}": value for key, value in tensors.items()}
    options = argparse.Namespace(stylegan_size=256, description="a person with a beard")
    torch.save({"state_dict": state, "opts": options}, tmp_path / "a.pt")
    model = mapper.convert(formats.read(tmp_path / "a.pt")).model
    assert model.config == MapperConfig(w_dim=6, num_layers=14, coarse=False, fine=False)
    assert model.config.card == MapperCard("a person with a beard", strength=0.1)


def test_the_fine_network_of_a_generator_without_fine_layers_is_left_out(tmp_path):
    tensors = networks("course_mapping", "medium_mapping", "fine_mapping")
    model = mapper.convert(save(tmp_path / "a.pt", tensors, stylegan_size=32)).model
    assert model.config.num_layers == 8
    assert model.fine is None


@pytest.mark.parametrize("name", MAPPER_TYPES)
def test_every_key_of_the_official_mappers_is_converted(name, manifest):
    prefix = "state_dict.mapper."
    values = {"opts.mapper_type": name, "opts.work_in_stylespace": name.endswith("SpaceMapper")}
    source = manifest(f"mapper_{name}", prefix, values=values)
    assert mapper._mapper_type(source, prefix) == name
    config = mapper.infer_config(source, name, prefix)
    assert config.num_layers == 18
    if name.endswith("StyleSpaceMapper"):
        assert config.style_dims == OFFICIAL_STYLE_DIMS
    shapes = seeded.parameter_shapes(MAPPER_TYPES[name], config)
    table = mapper.make_table(name, config, prefix)
    assert set(tables.apply_table(source, table, mapper.IGNORED, shapes)) == set(shapes)


def delta_tensors(width=4, fine=14, embed_dim=3):
    """DeltaEdit's mapper of a small generator; by default one of 128 pixels."""
    tensors = {}
    for group, features in {"coarse": width, "medium": width, "fine": fine}.items():
        for name, inputs in {"sm": features, "cm": 2 * embed_dim, "fm": 2 * features}.items():
            for i in range(4):
                key = f"{name}_{group}.mapping.{i if name == 'fm' else i + 1}"
                tensors[f"{key}.weight"] = torch.randn(features, features if i else inputs)
                tensors[f"{key}.bias"] = torch.randn(features)
    return tensors


def test_a_mapper_of_deltaedit_is_converted(tmp_path):
    tensors = delta_tensors()
    torch.save(tensors, tmp_path / "net_face.pth")
    model = mapper.convert(formats.read(tmp_path / "net_face.pth")).model
    generator = GeneratorConfig(128, channel_base=256, channel_max=4)
    assert model.config == DeltaMapperConfig(generator.style_dims, embed_dim=3)
    assert_same_layers(model.fine.condition, tensors, "cm_fine")
    for i, layer in enumerate(model.coarse.fusion.layers):
        np.testing.assert_array_equal(layer.kernel[...], tensors[f"fm_coarse.mapping.{i}.weight"].T)


@pytest.mark.parametrize(("resolution", "fine"), [(256, 2176), (512, 2368), (1024, 2464)])
def test_the_generator_of_a_deltaedit_mapper_is_inferred_from_its_fine_styles(
    source, resolution, fine
):
    shapes = {
        "sm_coarse.mapping.1.weight": (512, 512),
        "sm_fine.mapping.1.weight": (fine, fine),
        "cm_coarse.mapping.1.weight": (512, 1024),
    }
    zero = np.zeros((), np.float32)
    found = source({key: np.broadcast_to(zero, shape) for key, shape in shapes.items()})
    config = mapper.infer_delta_config(found)
    assert config.style_dims == GeneratorConfig(resolution).style_dims
    assert config.embed_dim == 512


def test_a_deltaedit_mapper_of_no_stylegan2_is_refused(tmp_path):
    torch.save(delta_tensors(fine=15), tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"fine group has 15 styles .* such as 2464"):
        mapper.convert(formats.read(tmp_path / "net.pth"))


def test_options_that_do_not_fit_the_weights_are_refused(tmp_path):
    tensors = networks("course_mapping", "fine_mapping")
    with pytest.raises(InputError, match=r"8 keys missing.*medium_mapping"):
        mapper.convert(save(tmp_path / "a.pt", tensors))
    with pytest.raises(InputError, match=r"8 keys unexpected.*fine_mapping"):
        options = {"no_medium_mapper": True, "no_fine_mapper": True}
        mapper.convert(save(tmp_path / "a.pt", tensors, **options))
    with pytest.raises(InputError, match=r"'Other'.*LevelsMapper"):
        mapper.convert(save(tmp_path / "a.pt", tensors, mapper_type="Other"))
    with pytest.raises(InputError, match="stylegan_size is 100"):
        mapper.convert(save(tmp_path / "a.pt", tensors, stylegan_size=100))


def test_a_mapper_without_any_bias_is_refused(tmp_path):
    tensors = {k: v for k, v in networks("mapping").items() if not k.endswith("bias")}
    with pytest.raises(InputError, match=r"4 keys missing.*mapping\.1\.bias"):
        mapper.convert(save(tmp_path / "a.pt", tensors, mapper_type="SingleMapper"))


def test_a_mapper_of_no_channels_is_refused(tmp_path):
    tensors = networks("mapping", width=0)
    with pytest.raises(InputError, match=r"a\.pt: w_dim is 0, expected at least 1"):
        mapper.convert(save(tmp_path / "a.pt", tensors, mapper_type="SingleMapper"))


def test_other_files_are_refused(source):
    with pytest.raises(InputError, match="not a StyleCLIP or DeltaEdit mapper"):
        mapper.convert(source({"g_ema.style.1.weight": np.zeros(1)}))
