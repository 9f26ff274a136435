"""CLIP from OpenAI's TorchScript archives and state dicts, or Hugging Face's directories and files.

Sources: ``clip/model.py`` of openai/CLIP; ``modeling_clip.py`` of huggingface/transformers.
"""

from typing import Any, NamedTuple

import numpy as np

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
from styleclip_jax.models.clip import CLIP, CLIPConfig

# The official code derives the number of heads from the width (`build_model`).
HEAD_WIDTH = 64


def qkv_kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Three (out, in) -> (in, 3 out)."""
    return linear_kernel(np.concatenate([query, key, value]))


def qkv_bias(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Three (out,) -> (3 out,)."""
    return np.concatenate([query, key, value])


class Layout(NamedTuple):
    """Parameter names of a family of CLIP files.

    Attributes:
        block, once: Table rows for each transformer block and for the rest.
        vision_blocks, text_blocks: Prefixes of the names of the towers' blocks.
        embed_axis: The axis of the image projection in the shared space.
        ignored: Keys that are not converted.
    """

    block: tuple[tuple, ...]
    once: tuple[tuple, ...]
    vision_blocks: str
    text_blocks: str
    embed_axis: int
    ignored: Ignored


OPENAI = Layout(
    block=(
        ("{name}.attn.in_proj_weight", "{tower}.blocks.{i}.attention.qkv.kernel", linear_kernel),
        ("{name}.attn.in_proj_bias", "{tower}.blocks.{i}.attention.qkv.bias", unchanged),
        ("{name}.attn.out_proj.weight", "{tower}.blocks.{i}.attention.out.kernel", linear_kernel),
        ("{name}.attn.out_proj.bias", "{tower}.blocks.{i}.attention.out.bias", unchanged),
        ("{name}.ln_1.weight", "{tower}.blocks.{i}.norm1.scale", unchanged),
        ("{name}.ln_1.bias", "{tower}.blocks.{i}.norm1.bias", unchanged),
        ("{name}.mlp.c_fc.weight", "{tower}.blocks.{i}.mlp_in.kernel", linear_kernel),
        ("{name}.mlp.c_fc.bias", "{tower}.blocks.{i}.mlp_in.bias", unchanged),
        ("{name}.mlp.c_proj.weight", "{tower}.blocks.{i}.mlp_out.kernel", linear_kernel),
        ("{name}.mlp.c_proj.bias", "{tower}.blocks.{i}.mlp_out.bias", unchanged),
        ("{name}.ln_2.weight", "{tower}.blocks.{i}.norm2.scale", unchanged),
        ("{name}.ln_2.bias", "{tower}.blocks.{i}.norm2.bias", unchanged),
    ),
    once=(
        ("visual.conv1.weight", "vision.patch_embedding.kernel", conv_kernel),
        ("visual.class_embedding", "vision.class_embedding", unchanged),
        ("visual.positional_embedding", "vision.position_embedding", unchanged),
        ("visual.ln_pre.weight", "vision.pre_norm.scale", unchanged),
        ("visual.ln_pre.bias", "vision.pre_norm.bias", unchanged),
        ("visual.ln_post.weight", "vision.post_norm.scale", unchanged),
        ("visual.ln_post.bias", "vision.post_norm.bias", unchanged),
        ("visual.proj", "vision.projection.kernel", unchanged),
        ("token_embedding.weight", "text.token_embedding.embedding", unchanged),
        ("positional_embedding", "text.position_embedding", unchanged),
        ("ln_final.weight", "text.final_norm.scale", unchanged),
        ("ln_final.bias", "text.final_norm.bias", unchanged),
        ("text_projection", "text.projection.kernel", unchanged),
        ("logit_scale", "logit_scale", unchanged),
    ),
    vision_blocks="visual.transformer.resblocks.",
    text_blocks="transformer.resblocks.",
    embed_axis=1,
    ignored={
        # Sizes, which also follow from shapes, and the causal mask, which is not a parameter.
        r"(visual\.)?input_resolution|context_length|vocab_size": None,
        r"transformer\.resblocks\.\d+\.attn_mask": None,
    },
)

HUGGING_FACE = Layout(
    block=(
        (
            "{name}.self_attn.q_proj.weight {name}.self_attn.k_proj.weight "
            "{name}.self_attn.v_proj.weight",
            "{tower}.blocks.{i}.attention.qkv.kernel",
            qkv_kernel,
        ),
        (
            "{name}.self_attn.q_proj.bias {name}.self_attn.k_proj.bias "
            "{name}.self_attn.v_proj.bias",
            "{tower}.blocks.{i}.attention.qkv.bias",
            qkv_bias,
        ),
        (
            "{name}.self_attn.out_proj.weight",
            "{tower}.blocks.{i}.attention.out.kernel",
            linear_kernel,
        ),
        ("{name}.self_attn.out_proj.bias", "{tower}.blocks.{i}.attention.out.bias", unchanged),
        ("{name}.layer_norm1.weight", "{tower}.blocks.{i}.norm1.scale", unchanged),
        ("{name}.layer_norm1.bias", "{tower}.blocks.{i}.norm1.bias", unchanged),
        ("{name}.mlp.fc1.weight", "{tower}.blocks.{i}.mlp_in.kernel", linear_kernel),
        ("{name}.mlp.fc1.bias", "{tower}.blocks.{i}.mlp_in.bias", unchanged),
        ("{name}.mlp.fc2.weight", "{tower}.blocks.{i}.mlp_out.kernel", linear_kernel),
        ("{name}.mlp.fc2.bias", "{tower}.blocks.{i}.mlp_out.bias", unchanged),
        ("{name}.layer_norm2.weight", "{tower}.blocks.{i}.norm2.scale", unchanged),
        ("{name}.layer_norm2.bias", "{tower}.blocks.{i}.norm2.bias", unchanged),
    ),
    once=(
        (
            "vision_model.embeddings.patch_embedding.weight",
            "vision.patch_embedding.kernel",
            conv_kernel,
        ),
        ("vision_model.embeddings.class_embedding", "vision.class_embedding", unchanged),
        (
            "vision_model.embeddings.position_embedding.weight",
            "vision.position_embedding",
            unchanged,
        ),
        # Misspelled in the official files.
        ("vision_model.pre_layrnorm.weight", "vision.pre_norm.scale", unchanged),
        ("vision_model.pre_layrnorm.bias", "vision.pre_norm.bias", unchanged),
        ("vision_model.post_layernorm.weight", "vision.post_norm.scale", unchanged),
        ("vision_model.post_layernorm.bias", "vision.post_norm.bias", unchanged),
        ("visual_projection.weight", "vision.projection.kernel", linear_kernel),
        (
            "text_model.embeddings.token_embedding.weight",
            "text.token_embedding.embedding",
            unchanged,
        ),
        ("text_model.embeddings.position_embedding.weight", "text.position_embedding", unchanged),
        ("text_model.final_layer_norm.weight", "text.final_norm.scale", unchanged),
        ("text_model.final_layer_norm.bias", "text.final_norm.bias", unchanged),
        ("text_projection.weight", "text.projection.kernel", linear_kernel),
        ("logit_scale", "logit_scale", unchanged),
    ),
    vision_blocks="vision_model.encoder.layers.",
    text_blocks="text_model.encoder.layers.",
    embed_axis=0,
    ignored={
        # A range from zero; stored by transformers before 4.31.
        r"(vision|text)_model\.embeddings\.position_ids": None,
    },
)


def convert(source: SourceFile) -> Conversion:
    """Converts a file by OpenAI or Hugging Face to a CLIP.

    Raises:
        InputError: The file is not a CLIP, or is one with a ResNet or another activation.
    """
    layout = _find_layout(source)
    table = make_table(source, layout)
    config = infer_config(source, layout, table)
    return Conversion(fill(CLIP, config, source, table, layout.ignored))


def make_table(source: SourceFile, layout: Layout) -> list[Row]:
    """The table of a CLIP, with the number of blocks of the file."""
    table = expand(layout.once)
    for tower, blocks in (("vision", layout.vision_blocks), ("text", layout.text_blocks)):
        for i in range(count(source, blocks)):
            table += expand(layout.block, name=f"{blocks}{i}", tower=tower, i=i)
    return table


def infer_config(source: SourceFile, layout: Layout, table: list[Row]) -> CLIPConfig:
    """Infers the architecture from shapes and from Hugging Face's ``config.json``.

    Raises:
        InputError: The architecture is not supported.
    """
    keys = {row.target: row.source for row in table}

    def size(target: str, axis: int, default: int) -> int:
        return dimension(source, keys[target], axis, default)

    def layers(tower: str) -> int:
        return sum(target.startswith(f"{tower}.blocks.") for target in keys) // 12

    patch_size = size("vision.patch_embedding.kernel", -1, 32)
    patches = max(0, size("vision.position_embedding", 0, 50) - 1)
    vision_width = size("vision.class_embedding", 0, 768)
    text_width = size("text.token_embedding.embedding", 1, 512)
    vision_heads = _heads(source, "vision", vision_width, default=12)
    text_heads = _heads(source, "text", text_width, default=8)
    try:
        return CLIPConfig(
            image_size=round(patches**0.5) * patch_size,
            patch_size=patch_size,
            vision_width=vision_width,
            vision_layers=layers("vision"),
            vision_heads=vision_heads,
            text_width=text_width,
            text_layers=layers("text"),
            text_heads=text_heads,
            embed_dim=size("vision.projection.kernel", layout.embed_axis, 512),
            context_length=size("text.position_embedding", 0, 77),
            vocab_size=size("text.token_embedding.embedding", 0, 49408),
        )
    except ValueError as error:
        raise InputError(f"{source.name}: {error}") from None


def _find_layout(source: SourceFile) -> Layout:
    if any(key.startswith("visual.layer1.") for key in source.tensors):
        raise InputError(
            f"{source.name} is a CLIP with a ResNet, expected a vision transformer such as ViT-B/32"
        )
    if any(key.startswith("visual.") for key in source.tensors):
        return OPENAI
    if any(key.startswith("vision_model.") for key in source.tensors):
        return HUGGING_FACE
    raise InputError(f"{source.name} is not a CLIP by OpenAI or Hugging Face ({describe(source)})")


def _heads(source: SourceFile, tower: str, width: int, default: int) -> int:
    """Checks options that shapes do not determine; returns the number of heads."""
    if not source.config:
        return max(1, width // HEAD_WIDTH)
    section: dict[str, Any] = {}
    # Older directories have both; the second one prevails.
    for name in (f"{tower}_config", f"{tower}_config_dict"):
        options = source.config.get(name) or {}
        if not isinstance(options, dict):
            raise InputError(f"{source.name}: {name} is {options!r}, expected a JSON object")
        section |= options
    for option, only in (("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-5)):
        if section.get(option, only) != only:
            raise InputError(
                f"{source.name}: {option} of the {tower} tower is {section[option]!r}, "
                f"expected {only!r}"
            )
    heads = section.get("num_attention_heads", default)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError(f"{source.name}: the width {width} is not divisible by {heads!r} heads")
    return heads
