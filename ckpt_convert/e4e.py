"""e4e encoders, including ReStyle's: ``encoder.*`` weights, ``latent_avg`` and ``opts``.

Sources: ``models/encoders/psp_encoders.py`` and ``models/psp.py`` of omertov/encoder4editing;
``models/encoders/restyle_e4e_encoders.py`` and ``models/e4e.py`` of yuval-alaluf/restyle-encoder.
"""

import dataclasses
import math

import numpy as np

from ckpt_convert.arcface import backbone_table
from ckpt_convert.formats import SourceFile
from ckpt_convert.tables import (
    Conversion,
    Ignored,
    Row,
    conv_kernel,
    count,
    describe,
    dimension,
    expand,
    fill,
    linear_kernel,
    unchanged,
)
from styleclip_jax.errors import InputError
from styleclip_jax.models.e4e import E4E, E4EConfig

PREFIXES = ("state_dict.encoder.", "encoder.", "")
# The classes of the official code.
ONE_ROUND, RESTYLE = "Encoder4Editing", "ProgressiveBackboneEncoder"

CONV = (
    ("{name}.weight", "{conv}.kernel", conv_kernel),
    ("{name}.bias", "{conv}.bias", unchanged),
)
LINEAR = (
    ("styles.{i}.linear.weight", "heads.{i}.linear.kernel", linear_kernel),
    ("styles.{i}.linear.bias", "heads.{i}.linear.bias", unchanged),
)
IGNORED: Ignored = {
    # Counts training steps.
    r".*\.num_batches_tracked": None,
    # The generator, and the rest of a training checkpoint.
    r"(state_dict\.)?decoder\..*|(opts|optimizer|discriminator\w*)\..*": None,
}


def convert(source: SourceFile) -> Conversion:
    """Converts an official file to an encoder.

    Raises:
        InputError: The file is not such an encoder, or its ``opts`` describe another one.
    """
    prefix = next((p for p in PREFIXES if count(source, f"{p}styles.")), None)
    if prefix is None:
        raise InputError(f"{source.name} is not an e4e encoder ({describe(source)})")
    config = infer_config(source, prefix)
    if source.values.get("opts.start_from_latent_avg") is False:
        zeros = np.zeros((config.num_layers, config.w_dim), np.float32)
        source = source._replace(tensors=source.tensors | {"latent_avg": zeros})
    return Conversion(fill(E4E, config, source, make_table(config, prefix), IGNORED))


def infer_config(source: SourceFile, prefix: str) -> E4EConfig:
    """Infers the architecture from keys, shapes and ``opts``.

    Raises:
        InputError: They contradict each other, or the encoder is of another kind.
    """
    restyle = f"{prefix}latlayer1.weight" not in source.tensors
    found = RESTYLE if restyle else ONE_ROUND
    named = source.values.get("opts.encoder_type", found)
    if named != found:
        raise InputError(
            f"{source.name} is an encoder of type {named}, expected {ONE_ROUND} or ReStyle's"
            f" {RESTYLE}"
        )
    num_layers = count(source, f"{prefix}styles.")
    key = "opts.output_size" if restyle else "opts.stylegan_size"
    size = source.values.get(key, 2 ** (num_layers // 2 + 1))
    if not isinstance(size, int) or size < 8 or 2 * math.log2(size) - 2 != num_layers:
        raise InputError(
            f"{source.name}: {key} is {size!r}, but the encoder has {num_layers} layers"
        )
    config = E4EConfig.restyle(num_layers) if restyle else E4EConfig(num_layers=num_layers)
    changes = {"w_dim": dimension(source, f"{prefix}styles.0.linear.weight", 0, config.w_dim)}
    if restyle:
        changes["rounds"] = source.values.get("opts.n_iters_per_batch", config.rounds)
    if str(source.values.get("opts.dataset_type", "")).startswith("cars"):
        changes["image_height"] = 192
    try:
        return dataclasses.replace(config, **changes)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source.name}: {error}") from None


def make_table(config: E4EConfig, prefix: str) -> list[Row]:
    """The table of an encoder."""
    table = backbone_table(config.stem_width, config.stages)
    for i in range(max(config.pyramid)):
        table += expand(CONV, name=f"latlayer{i + 1}", conv=f"laterals.{i}")
    size = config.image_width >> len(config.stages)
    for i, level in enumerate(config.pyramid):
        for j in range(int(math.log2(size << level))):
            table += expand(CONV, name=f"styles.{i}.convs.{2 * j}", conv=f"heads.{i}.convs.{j}")
        table += expand(LINEAR, i=i)
    table = [row._replace(source=prefix + row.source) for row in table]
    return [*table, Row("latent_avg", "mean_latent", mean_latents(config.num_layers))]


def mean_latents(num_layers: int):
    """(w_dim,), (1, w_dim) or (layers, w_dim) -> (layers, w_dim)."""
    return lambda x: np.broadcast_to(x, (num_layers, x.shape[-1]))
