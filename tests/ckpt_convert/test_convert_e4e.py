import functools

import numpy as np
import pytest
import seeded

from ckpt_convert import e4e, formats, stylegan2, tables
from styleclip_jax.errors import InputError
from styleclip_jax.models.e4e import E4E, E4EConfig

STYLEGAN2 = seeded.load("stylegan2").weights("rosinality_64")
LAYERS = 10


@functools.cache
def names(config, prefix=""):
    """The official keys of an encoder, for arrays of the right shapes."""
    shapes = seeded.parameter_shapes(E4E, config)
    inverse = {
        e4e.conv_kernel: lambda s: (s[3], s[2], s[0], s[1]),
        e4e.linear_kernel: lambda s: (s[1], s[0]),
        e4e.unchanged: lambda s: s,
    }
    tensors = {}
    for row in e4e.make_table(config, prefix):
        shape = shapes[row.target]
        if row.source != "latent_avg":
            if row.target.endswith(("squeeze.kernel", "excite.kernel")):
                shape = (shape[1], shape[0], 1, 1)
            else:
                shape = inverse[row.transform](shape)
        tensors[row.source] = np.broadcast_to(np.float32(0), shape)
    return tensors


def values(**options):
    return {f"opts.{name}": value for name, value in options.items()}


def test_every_key_of_the_official_file_is_converted(manifest):
    encoder = manifest("e4e_encoder_1024", "state_dict.encoder.")
    encoder.tensors["latent_avg"] = np.broadcast_to(np.float32(0), (18, 512))
    encoder.values.update(values(stylegan_size=1024, encoder_type="Encoder4Editing"))
    config = e4e.infer_config(encoder, "state_dict.encoder.")
    assert config == E4EConfig()
    shapes = seeded.parameter_shapes(E4E, config)
    table = e4e.make_table(config, "state_dict.encoder.")
    assert set(tables.apply_table(encoder, table, e4e.IGNORED, shapes)) == set(shapes)


def test_one_file_gives_the_encoder_and_its_generator(source):
    config = E4EConfig(num_layers=LAYERS)
    mean = np.arange(512, dtype=np.float32)
    tensors = dict(names(config, "state_dict.encoder."))
    tensors |= {f"state_dict.decoder.{key}": value for key, value in STYLEGAN2.items()}
    tensors["latent_avg"] = np.tile(mean, (LAYERS, 1))
    file = source(tensors)._replace(values=values(stylegan_size=64, dataset_type="cars_encode"))
    encoder = e4e.convert(file).model
    assert (encoder.config.num_layers, encoder.config.image_height) == (LAYERS, 192)
    np.testing.assert_array_equal(encoder.mean_latent[...], tensors["latent_avg"])
    conversion = stylegan2.convert(file)
    assert not conversion.notes
    np.testing.assert_array_equal(conversion.model.mean_w[...], mean)
    assert conversion.model.config.resolution == 64


def test_restyle_is_detected_by_its_keys_and_options(source):
    config = E4EConfig.restyle(LAYERS)
    options = values(encoder_type="ProgressiveBackboneEncoder", n_iters_per_batch=3, output_size=64)
    file = source(names(config, "state_dict.encoder."))._replace(values=options)
    model = e4e.convert(file).model
    assert (model.config.in_channels, model.config.rounds) == (6, 3)
    assert set(model.config.pyramid) == {0}


def test_an_encoder_that_does_not_start_from_the_mean_has_a_mean_of_zero(source):
    tensors = names(E4EConfig(num_layers=LAYERS)) | {"latent_avg": np.ones((LAYERS, 512))}
    file = source(tensors)._replace(values=values(start_from_latent_avg=False))
    assert not np.any(e4e.convert(file).model.mean_latent[...])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_type": "GradualStyleEncoder"}, "of type GradualStyleEncoder"),
        ({"stylegan_size": 1024}, "stylegan_size is 1024, but the encoder has 10 layers"),
        ({"stylegan_size": "big"}, "stylegan_size is 'big'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, source):
    file = source(names(E4EConfig(num_layers=LAYERS)))._replace(values=values(**options))
    with pytest.raises(InputError, match=message):
        e4e.convert(file)


def test_other_files_are_refused(source):
    with pytest.raises(InputError, match=r"not an e4e encoder.*'a'"):
        e4e.convert(source({"a": np.zeros(1)}))
    tensors = dict(names(E4EConfig(num_layers=LAYERS)))
    del tensors["latent_avg"]
    with pytest.raises(InputError, match=r"1 key missing \(latent_avg\)"):
        e4e.convert(source(tensors))


def test_a_mean_latent_that_differs_between_layers_is_refused(source):
    mean = np.arange(2 * 512, dtype=np.float32).reshape(2, 512)
    with pytest.raises(InputError, match="latent_avg"):
        stylegan2.convert(source(STYLEGAN2 | {"latent_avg": mean}))


def test_stylegan_nadas_file_is_converted(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {key: torch.tensor(value) for key, value in STYLEGAN2.items()}
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 1.0}],
    }
    torch.save({"g_ema": weights, "g_optim": optimizer}, tmp_path / "nada.pt")
    conversion = stylegan2.convert(formats.read(tmp_path / "nada.pt"))
    assert conversion.model.config.resolution == 64
    assert "latent_avg" in conversion.notes[0]
