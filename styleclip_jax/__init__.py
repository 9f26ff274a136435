"""Text-driven editing of StyleGAN2 images in JAX."""

from styleclip_jax import models
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import (
    load_arcface,
    load_clip,
    load_generator,
    load_mapper,
    save_model,
)
from styleclip_jax.io.text import load_tokenizer
from styleclip_jax.losses import clip_loss, id_loss
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.mapper_training import (
    MapperTrainConfig,
    init_mapper_state,
    make_mapper_train_step,
)
from styleclip_jax.methods.optimization import (
    AVATARS_CONFIG,
    AVATARS_GENERATE_CONFIG,
    EditResult,
    OptimizeConfig,
    edit_latents,
)

__version__ = "0.1.0"

__all__ = [
    "AVATARS_CONFIG",
    "AVATARS_GENERATE_CONFIG",
    "EditResult",
    "InputError",
    "MapperTrainConfig",
    "OptimizeConfig",
    "apply_mapper",
    "clip_loss",
    "edit_latents",
    "id_loss",
    "init_mapper_state",
    "load_arcface",
    "load_clip",
    "load_generator",
    "load_mapper",
    "load_tokenizer",
    "make_mapper_train_step",
    "models",
    "save_model",
]
