"""Latent mappers trained by the official StyleCLIP and DeltaEdit code.

Sources: ``mapper/latent_mappers.py``, ``mapper/styleclip_mapper.py`` and
``mapper/training/coach.py`` of orpatashnik/StyleCLIP, whose files hold ``mapper.*`` weights and
``opts``; ``delta_mapper.py`` of Yueming6568/DeltaEdit, whose files hold the weights alone.
"""

import math
import re
from typing import Any

from ckpt_convert.formats import SourceFile
from ckpt_convert.tables import (
    Conversion,
    Row,
    count,
    describe,
    dimension,
    expand,
    fill,
    linear_kernel,
    unchanged,
)
from styleclip_jax.errors import InputError
from styleclip_jax.models.card import MapperCard
from styleclip_jax.models.delta_mapper import DELTA_GROUPS, DeltaMapper, DeltaMapperConfig
from styleclip_jax.models.mapper import LEVELS, MAPPER_TYPES, MapperConfig
from styleclip_jax.models.stylegan2 import GeneratorConfig, conv_entries

# The official sequence starts with the pixel norm.
LAYER = (
    ("{name}.mapping.{n}.weight", "{network}.layers.{i}.kernel", linear_kernel),
    ("{name}.mapping.{n}.bias", "{network}.layers.{i}.bias", unchanged),
)
GROUPS = {"coarse": "course_mapping", "medium": "medium_mapping", "fine": "fine_mapping"}
DELTA_NETWORKS = {"sm": "style", "cm": "condition", "fm": "fusion"}
IGNORED: dict[str, None] = {
    # The frozen generator used in training.
    r"(state_dict\.)?decoder\..*": None,
}
_DEFAULT_GENERATOR_SIZE = 1024


def convert(source: SourceFile) -> Conversion:
    """Converts an official training checkpoint of StyleCLIP or DeltaEdit to a mapper.

    The type and groups of StyleCLIP's mappers come from ``opts``, or else from the keys.

    Raises:
        InputError: The file is not a mapper, or its ``opts`` describe another one.
    """
    if _has(source, "sm_coarse"):
        return _convert_delta_mapper(source)
    prefix = _find_prefix(source)
    type_name = _mapper_type(source, prefix)
    config = infer_config(source, type_name, prefix)
    table = make_table(type_name, config, prefix)
    # For small generators, the official code has a fine mapper that no layer uses.
    unused = {
        re.escape(prefix + GROUPS[group]) + r"\..*": None
        for group, layers in LEVELS.items()
        if layers.start >= config.num_layers
    }
    return Conversion(fill(MAPPER_TYPES[type_name], config, source, table, IGNORED | unused))


def _convert_delta_mapper(source: SourceFile) -> Conversion:
    config = infer_delta_config(source)
    return Conversion(fill(DeltaMapper, config, source, make_delta_table(config), {}))


def make_delta_table(config: DeltaMapperConfig) -> list[Row]:
    """The table of DeltaEdit's mapper."""
    table = []
    for group in DELTA_GROUPS:
        for name, network in DELTA_NETWORKS.items():
            for i in range(config.depth):
                # The fusion networks do not start with a pixel norm.
                n = i if name == "fm" else i + 1
                fields = {"name": f"{name}_{group}", "network": f"{group}.{network}"}
                table += expand(LAYER, **fields, i=i, n=n)
    return table


def infer_delta_config(source: SourceFile) -> DeltaMapperConfig:
    """Infers the architecture of DeltaEdit's mapper and of its generator.

    The input of the fine group's networks is as wide as all styles of its layers, which determines
    the resolution of the generator.

    Raises:
        InputError: No generator has these widths.
    """
    width = dimension(source, "sm_coarse.mapping.1.weight", 1, 512)
    fine = dimension(source, "sm_fine.mapping.1.weight", 1, 2464)
    condition = dimension(source, "cm_coarse.mapping.1.weight", 1, 1024)
    card = MapperCard(strength=1.0)
    found = [
        config
        for resolution in (128, 256, 512, 1024)
        # StyleGAN2's config F, and the one with half as many channels.
        for channel_base in (64 * width, 32 * width)
        if channel_base >= resolution
        for style_dims in [
            GeneratorConfig(resolution, channel_base=channel_base, channel_max=width).style_dims
        ]
        for config in [DeltaMapperConfig(style_dims, condition // 2, card=card)]
        if sum(style_dims[i] for i in config.group("fine")) == fine
    ]
    if not found:
        raise InputError(
            f"{source.name}: the fine group has {fine} styles and the coarse layers {width},"
            " expected those of a StyleGAN2 of 128 to 1024 pixels, such as 2464 and 512 at 1024"
            " pixels"
        )
    return found[0]


def make_table(type_name: str, config: MapperConfig, prefix: str) -> list[Row]:
    """The table of one mapper."""
    networks = {
        "LevelsMapper": {
            GROUPS[group]: group
            for group, layers in LEVELS.items()
            if getattr(config, group) and layers.start < config.num_layers
        },
        "SingleMapper": {"mapping": "network"},
        "FullStyleSpaceMapper": {
            f"mapper_{c}": f"networks.{c}" for c in range(len(config.style_dims))
        },
        "WithoutToRGBStyleSpaceMapper": {
            f"mapper_{c}": f"networks.{c}" for c in conv_entries(config.style_dims)
        },
    }
    table = []
    for name, network in networks[type_name].items():
        for i in range(config.depth):
            table += expand(LAYER, name=prefix + name, network=network, i=i, n=i + 1)
    return table


def infer_config(source: SourceFile, type_name: str, prefix: str) -> MapperConfig:
    """Infers the shape of the latents that a mapper changes.

    Raises:
        InputError: ``opts`` are invalid, or the architecture is not supported.
    """
    size = _option(source, "stylegan_size", _DEFAULT_GENERATOR_SIZE)
    if not isinstance(size, int) or size < 8 or size & (size - 1):
        raise InputError(f"{source.name}: opts.stylegan_size is {size!r}, expected a power of two")
    num_layers = 2 * int(math.log2(size)) - 2
    text = _option(source, "description", None)
    config: dict[str, Any] = {
        "num_layers": num_layers,
        "card": MapperCard(text=text if isinstance(text, str) else None),
    }
    if type_name.endswith("StyleSpaceMapper"):
        config["style_dims"] = _style_dims(source, prefix)
    else:
        biases = [key for key in source.tensors if re.search(r"mapping\.\d+\.bias$", key)]
        config["w_dim"] = dimension(source, biases[0], 0, 512) if biases else 512
    if type_name == "LevelsMapper":
        for group, name in GROUPS.items():
            left_out = not _has(source, prefix + name)
            config[group] = not _option(source, f"no_{group}_mapper", left_out)
    try:
        return MapperConfig(**config)
    except ValueError as error:
        raise InputError(f"{source.name}: {error}") from None


def _style_dims(source: SourceFile, prefix: str) -> tuple[int, ...]:
    """Widths of the StyleSpace entries.

    An entry without a network belongs to a ToRGB layer and is as wide as the one before it, because
    both modulate the same number of channels.
    """
    entries = count(source, f"{prefix}mapper_")
    # The last entry belongs to a ToRGB layer.
    entries += entries % 3 == 1
    dims: list[int] = []
    for c in range(entries):
        dims.append(dimension(source, f"{prefix}mapper_{c}.mapping.1.bias", 0, (dims or [512])[-1]))
    return tuple(dims)


def _find_prefix(source: SourceFile) -> str:
    for prefix in ("state_dict.mapper.", "mapper.", ""):
        if any(re.match(re.escape(prefix) + r"\w+\.mapping\.\d+\.", key) for key in source.tensors):
            return prefix
    raise InputError(f"{source.name} is not a StyleCLIP or DeltaEdit mapper ({describe(source)})")


def _mapper_type(source: SourceFile, prefix: str) -> str:
    if _option(source, "work_in_stylespace", _has(source, f"{prefix}mapper_0")):
        # The official training code has no option for the mapper with ToRGB layers.
        with_rgb = _has(source, f"{prefix}mapper_1")
        return "FullStyleSpaceMapper" if with_rgb else "WithoutToRGBStyleSpaceMapper"
    found = "SingleMapper" if _has(source, f"{prefix}mapping") else "LevelsMapper"
    type_name = _option(source, "mapper_type", found)
    if type_name not in MAPPER_TYPES:
        raise InputError(
            f"{source.name}: opts.mapper_type is {type_name!r}, expected one of "
            f"{', '.join(MAPPER_TYPES)}"
        )
    return type_name


def _has(source: SourceFile, module: str) -> bool:
    return any(key.startswith(f"{module}.") for key in source.tensors)


def _option(source: SourceFile, name: str, default):
    return source.values.get(f"opts.{name}", default)
