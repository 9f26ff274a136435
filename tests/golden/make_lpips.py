"""Makes lpips.npz: the official LPIPS with VGG16 on seeded weights, and the gradient of it.

Usage, with a checkout of richzhang/PerceptualSimilarity:

    python tests/golden/make_lpips.py --lpips=PATH
"""

import importlib
import re
from types import SimpleNamespace
from unittest import mock

import official
import seeded
import torch
from absl import app, flags
from torch import nn

_LPIPS = flags.DEFINE_string("lpips", None, "Checkout of PerceptualSimilarity.", required=True)

SEED = 7
# Channels of the convolutions of torchvision's vgg16; 0 is a pooling.
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg16(**_: bool) -> SimpleNamespace:
    """torchvision's network without its classifier, which LPIPS does not use."""
    layers, channels_in = [], 3
    for channels in VGG16:
        if channels:
            layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU(inplace=True)]
            channels_in = channels
        else:
            layers += [nn.MaxPool2d(2, 2)]
    return SimpleNamespace(features=nn.Sequential(*layers))


def main(_: list[str]) -> None:
    """Writes the file."""
    official.prepare(_LPIPS.value)
    networks = importlib.import_module("lpips.pretrained_networks")
    with mock.patch.object(networks.tv, "vgg16", vgg16):
        lpips = importlib.import_module("lpips").LPIPS(net="vgg", pretrained=False, verbose=False)
    # Not the constants of the scaling, nor the second names of the linear weights.
    shapes = {
        key: list(value.shape)
        for key, value in lpips.state_dict().items()
        if re.match(r"net|lin\d", key)
    }
    values = seeded.state_dict(shapes, SEED)
    lpips.load_state_dict({k: torch.from_numpy(v) for k, v in values.items()}, strict=False)
    weights = {"lpips": {"seed": SEED, "shapes": shapes}}
    inputs = {"images": (2, 3, 64, 48), "images.other": (2, 3, 64, 48)}
    images, others = (
        torch.from_numpy(seeded.seeded_tensor(name, shape, SEED)) for name, shape in inputs.items()
    )
    images.requires_grad_()
    distances = lpips(images, others).flatten()
    (gradient,) = torch.autograd.grad(distances.sum(), images)
    arrays = {"distances": distances.detach().numpy(), "gradient": gradient.numpy()}
    settings = {"weights": weights, "inputs": inputs, "seed": SEED, "versions": official.VERSIONS}
    seeded.save("lpips", settings, arrays)


if __name__ == "__main__":
    app.run(main)
