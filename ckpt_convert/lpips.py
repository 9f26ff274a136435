"""LPIPS with VGG16: torchvision's ``vgg16`` and the linear weights of the package ``lpips``.

Sources: ``torchvision/models/vgg.py`` of pytorch/vision; ``lpips/lpips.py`` and
``lpips/pretrained_networks.py`` of richzhang/PerceptualSimilarity, whose complete state dict is
supported too.
"""

import re

import numpy as np

from ckpt_convert.formats import SourceFile
from ckpt_convert.tables import (
    Conversion,
    Ignored,
    Row,
    conv_kernel,
    describe,
    expand,
    fill,
    unchanged,
)
from styleclip_jax.errors import InputError
from styleclip_jax.models.lpips import LPIPS, LPIPSConfig

CONV = (
    ("{name}.weight", "convs.{i}.kernel", conv_kernel),
    ("{name}.bias", "convs.{i}.bias", unchanged),
)
IGNORED: Ignored = {
    # VGG16's ImageNet classifier.
    r"classifier\..*": None,
    # Constants, and the linear weights under another name.
    r"scaling_layer\..*|lins\..*": None,
}


def channel_weights(x: np.ndarray) -> np.ndarray:
    """(1, channels, 1, 1) -> (channels,)."""
    return np.squeeze(x, (0, 2, 3))


def convert(source: SourceFile) -> Conversion:
    """Converts files to an LPIPS.

    Args:
        source: The tensors of both files, or of a complete LPIPS.

    Raises:
        InputError: The linear weights are missing, or the network is not a VGG16.
    """
    tensors = source.tensors
    if "lin0.model.1.weight" not in tensors:
        advice = "; add the linear weights with --linear" if "features.0.weight" in tensors else ""
        raise InputError(f"{source.name} is not an LPIPS ({describe(source)}){advice}")
    if any((x < 0).any() for key, x in tensors.items() if re.match(r"lin\d", key)):
        raise InputError(f"{source.name} has negative linear weights, expected at least 0")
    config = LPIPSConfig()
    whole = "net.slice1.0.weight" in tensors
    return Conversion(fill(LPIPS, config, source, make_table(config, whole), IGNORED))


def make_table(config: LPIPSConfig, whole: bool) -> list[Row]:
    """The table of an LPIPS, with the names of a complete LPIPS (``whole``) or of torchvision."""
    table, i, layer = [], 0, 0
    for stage, (_, depth) in enumerate(config.stages):
        layer += stage > 0  # The pooling.
        for _ in range(depth):
            name = f"net.slice{stage + 1}.{layer}" if whole else f"features.{layer}"
            table += expand(CONV, name=name, i=i)
            i, layer = i + 1, layer + 2
        table += [Row(f"lin{stage}.model.1.weight", f"weights.{stage}", channel_weights)]
    return table
