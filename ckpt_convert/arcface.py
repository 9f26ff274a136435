"""ArcFace IR-SE50: ``model_ir_se50.pth`` of TreB1eN/InsightFace_Pytorch.

Source: ``models/facial_recognition/model_irse.py`` of orpatashnik/StyleCLIP.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from ckpt_convert.formats import SourceFile
from ckpt_convert.tables import (
    Conversion,
    Ignored,
    Row,
    conv_kernel,
    count,
    describe,
    expand,
    fill,
    linear_kernel,
    unchanged,
)
from styleclip_jax.errors import InputError
from styleclip_jax.models.arcface import ArcFace, ArcFaceConfig

BLOCKS = "body."


def pointwise_kernel(x: np.ndarray) -> np.ndarray:
    """(out, in, 1, 1) -> (in, out)."""
    return linear_kernel(np.squeeze(x, (2, 3)))


def embedding_kernel(x: np.ndarray, channels: int) -> np.ndarray:
    """(out, channels * size * size), for a flattened NCHW map -> (size, size, channels, out)."""
    size = math.isqrt(x.shape[1] // channels)
    return conv_kernel(x.reshape(-1, channels, size, size))


NORM = (
    ("{name}.weight", "{norm}.scale", unchanged),
    ("{name}.bias", "{norm}.bias", unchanged),
    ("{name}.running_mean", "{norm}.mean", unchanged),
    ("{name}.running_var", "{norm}.var", unchanged),
)
# Official names of the normalizations after the backbone and in its blocks.
NORMS = {"output_layer.0": "norm", "output_layer.4": "embedding_norm"}
BLOCK_NORMS = {"res_layer.0": "norm1", "res_layer.4": "norm2"}

BLOCK = (
    ("body.{i}.res_layer.1.weight", "blocks.{i}.conv1.kernel", conv_kernel),
    ("body.{i}.res_layer.2.weight", "blocks.{i}.slope", unchanged),
    ("body.{i}.res_layer.3.weight", "blocks.{i}.conv2.kernel", conv_kernel),
    ("body.{i}.res_layer.5.fc1.weight", "blocks.{i}.squeeze.kernel", pointwise_kernel),
    ("body.{i}.res_layer.5.fc2.weight", "blocks.{i}.excite.kernel", pointwise_kernel),
)
SHORTCUT = (("body.{i}.shortcut_layer.0.weight", "blocks.{i}.shortcut_conv.kernel", conv_kernel),)
SHORTCUT_NORMS = {"shortcut_layer.1": "shortcut_norm"}
STEM = (
    ("input_layer.0.weight", "stem.conv.kernel", conv_kernel),
    ("input_layer.2.weight", "stem.slope", unchanged),
)
IGNORED: Ignored = {
    # Counts training steps.
    r".*\.num_batches_tracked": None,
}


def convert(source: SourceFile) -> Conversion:
    """Converts an IR-SE50 file to an ArcFace.

    Raises:
        InputError: The file is not exactly this network.
    """
    if not count(source, BLOCKS):
        raise InputError(f"{source.name} is not an ArcFace IR-SE50 ({describe(source)})")
    config = ArcFaceConfig()
    return Conversion(fill(ArcFace, config, source, make_table(config), IGNORED))


def make_table(config: ArcFaceConfig) -> list[Row]:
    """The table of an IR-SE network."""
    embed = functools.partial(embedding_kernel, channels=config.stages[-1][0])
    table = backbone_table(config.stem_width, config.stages)
    table += [Row("output_layer.3.weight", "kernel", embed)]
    table += [Row("output_layer.3.bias", "bias", unchanged)]
    for name, norm in NORMS.items():
        table += expand(NORM, name=name, norm=norm)
    return table


def backbone_table(in_channels: int, stages: Sequence[Sequence[int]]) -> list[Row]:
    """The table of the stem and the blocks, also used for encoders."""
    table = expand(STEM) + expand(NORM, name="input_layer.1", norm="stem.norm")
    i = 0
    for channels, depth in stages:
        for _ in range(depth):
            rows, norms = BLOCK, BLOCK_NORMS
            if in_channels != channels:
                rows, norms = BLOCK + SHORTCUT, BLOCK_NORMS | SHORTCUT_NORMS
            table += expand(rows, i=i)
            for name, norm in norms.items():
                table += expand(NORM, name=f"body.{i}.{name}", norm=f"blocks.{i}.{norm}")
            in_channels, i = channels, i + 1
    return table
