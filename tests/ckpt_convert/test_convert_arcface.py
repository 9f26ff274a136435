import dataclasses

import jax
import numpy as np
import pytest
import seeded
import torch
from torch import nn

from ckpt_convert import arcface, tables
from styleclip_jax.errors import InputError
from styleclip_jax.models.arcface import ArcFace, ArcFaceConfig


def test_every_key_of_the_official_file_is_converted(manifest):
    config = ArcFaceConfig()
    source = manifest("arcface_ir_se50")
    shapes = seeded.parameter_shapes(ArcFace, config)
    table = arcface.make_table(config)
    assert set(tables.apply_table(source, table, arcface.IGNORED, shapes)) == set(shapes)


def batch_norm(channels):
    layer = nn.BatchNorm1d(channels) if channels == 512 else nn.BatchNorm2d(channels)
    layer.weight.data = 1 + 0.1 * torch.randn(channels)
    layer.bias.data = torch.randn(channels)
    layer.running_mean = torch.randn(channels)
    layer.running_var = 0.5 + torch.rand(channels)
    return layer


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, x):
        weights = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(weights)


class Block(nn.Module):
    """A block with the official names."""

    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.stride = stride
        self.shortcut_layer = None
        if channels_in != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), batch_norm(channels)
            )
        self.res_layer = nn.Sequential(
            batch_norm(channels_in),
            nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False),
            nn.PReLU(channels, init=0.3),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            batch_norm(channels),
            SqueezeExcite(channels),
        )

    def forward(self, x):
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return self.res_layer(x) + (self.shortcut_layer(x) if self.shortcut_layer else shortcut)


class Network(nn.Module):
    """Two stages with the official names; the last one as in the official code."""

    def __init__(self, config):
        super().__init__()
        (first, _), (second, _) = config.stages
        size = config.image_size // 4
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, config.stem_width, 3, 1, 1, bias=False),
            batch_norm(config.stem_width),
            nn.PReLU(config.stem_width),
        )
        self.body = nn.Sequential(
            Block(config.stem_width, first, 2), Block(first, second, 2), Block(second, second, 1)
        )
        self.output_layer = nn.Sequential(
            batch_norm(second),
            nn.Identity(),
            nn.Flatten(),
            nn.Linear(second * size * size, 512),
            batch_norm(512),
        )

    def forward(self, x):
        return nn.functional.normalize(self.output_layer(self.body(self.input_layer(x))))


def test_a_converted_network_computes_the_same(source, monkeypatch):
    config = dataclasses.replace(
        ArcFaceConfig(), image_size=16, stem_width=8, stages=((8, 1), (16, 2)), reduction=4
    )
    torch.manual_seed(0)
    network = Network(config).eval()
    monkeypatch.setattr(arcface, "ArcFaceConfig", lambda: config)
    tensors = {key: value.numpy() for key, value in network.state_dict().items()}
    model = arcface.convert(source(tensors)).model
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    expected = network(images).detach().numpy()
    found = jax.jit(ArcFace.__call__)(model, jax.numpy.asarray(images.movedim(1, 3).numpy()))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_files_are_refused(manifest, source):
    with pytest.raises(InputError, match=r"not an ArcFace.*'a'"):
        arcface.convert(source({"a": np.zeros(1)}))
    cut = manifest("arcface_ir_se50")
    del cut.tensors["body.7.res_layer.4.running_var"]
    with pytest.raises(InputError, match=r"1 key missing \(body\.7\.res_layer\.4\.running_var\)"):
        arcface.convert(cut)
