"""Text-driven editing of StyleGAN2 images in JAX."""

from styleclip_jax import models
from styleclip_jax.avatars import AVATARS_CONFIG, AVATARS_GENERATE_CONFIG, AVATARS_NEUTRAL
from styleclip_jax.errors import InputError
from styleclip_jax.faces import AlignedFace, FaceTransform, align_face, find_faces, paste_back
from styleclip_jax.io.checkpoints import (
    fingerprint,
    load_arcface,
    load_clip,
    load_directions,
    load_encoder,
    load_generator,
    load_lpips,
    load_mapper,
    pretrained_mappers,
    save_model,
)
from styleclip_jax.io.images import before_after_sheet, read_image, sheet, write_gif, write_image
from styleclip_jax.io.latents import load_latents, save_latents
from styleclip_jax.io.text import encode_texts, load_tokenizer
from styleclip_jax.latents import sample_latents, synthesize
from styleclip_jax.losses import clip_loss, id_loss
from styleclip_jax.methods.delta_editing import (
    DeltaEdit,
    best_delta_strengths,
    edit_with_delta_mapper,
)
from styleclip_jax.methods.delta_training import (
    DeltaTrainConfig,
    make_delta_evaluation,
    make_delta_train_step,
    see_styles,
)
from styleclip_jax.methods.directions import (
    DirectionEdit,
    automatic_threshold,
    best_strengths,
    check_fingerprints,
    edit_with_direction,
    text_direction,
)
from styleclip_jax.methods.inversion import Inversion, InvertConfig, invert
from styleclip_jax.methods.linear_start import latent_directions, sample_features
from styleclip_jax.methods.mapper_editing import apply_mapper
from styleclip_jax.methods.mapper_training import (
    MapperState,
    MapperTrainConfig,
    init_mapper_state,
    make_mapper_evaluation,
    make_mapper_train_step,
    mapper_card,
    start_along,
)
from styleclip_jax.methods.optimization import (
    EditResult,
    OptimizeConfig,
    edit_latents,
)
from styleclip_jax.methods.relevance import with_scales
from styleclip_jax.methods.tuning import TuneConfig, tune_generator
from styleclip_jax.models.variables import parameter_mask
from styleclip_jax.runs.compilation_cache import enable_compilation_cache
from styleclip_jax.runs.results import run_directory, write_metrics

__version__ = "0.1.0"

__all__ = [
    "AVATARS_CONFIG",
    "AVATARS_GENERATE_CONFIG",
    "AVATARS_NEUTRAL",
    "AlignedFace",
    "DeltaEdit",
    "DeltaTrainConfig",
    "DirectionEdit",
    "EditResult",
    "FaceTransform",
    "InputError",
    "Inversion",
    "InvertConfig",
    "MapperState",
    "MapperTrainConfig",
    "OptimizeConfig",
    "TuneConfig",
    "__version__",
    "align_face",
    "apply_mapper",
    "automatic_threshold",
    "before_after_sheet",
    "best_delta_strengths",
    "best_strengths",
    "check_fingerprints",
    "clip_loss",
    "edit_latents",
    "edit_with_delta_mapper",
    "edit_with_direction",
    "enable_compilation_cache",
    "encode_texts",
    "find_faces",
    "fingerprint",
    "id_loss",
    "init_mapper_state",
    "invert",
    "latent_directions",
    "load_arcface",
    "load_clip",
    "load_directions",
    "load_encoder",
    "load_generator",
    "load_latents",
    "load_lpips",
    "load_mapper",
    "load_tokenizer",
    "make_delta_evaluation",
    "make_delta_train_step",
    "make_mapper_evaluation",
    "make_mapper_train_step",
    "mapper_card",
    "models",
    "parameter_mask",
    "paste_back",
    "pretrained_mappers",
    "read_image",
    "run_directory",
    "sample_features",
    "sample_latents",
    "save_latents",
    "save_model",
    "see_styles",
    "sheet",
    "start_along",
    "synthesize",
    "text_direction",
    "tune_generator",
    "with_scales",
    "write_gif",
    "write_image",
    "write_metrics",
]
