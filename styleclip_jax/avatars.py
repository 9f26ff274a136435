"""Settings for the avatars, the models that ship with the package; see avatars/REPORT.md.

Scripts use them if there is no --generator; other generators get the official settings.
"""

import dataclasses
from typing import Any

from styleclip_jax.methods.delta_training import DeltaTrainConfig
from styleclip_jax.methods.directions import DirectionDefaults
from styleclip_jax.methods.inversion import InvertConfig
from styleclip_jax.methods.mapper_training import MapperTrainConfig
from styleclip_jax.methods.optimization import OptimizeConfig
from styleclip_jax.methods.relevance import RelevanceConfig
from styleclip_jax.methods.stylemc import StyleMCConfig

AVATARS_NEUTRAL = "a person"
# What their CLIP sees; the generator's last layers only sharpen.
_GUIDE_RESOLUTION = 64

# Tuned by hand.
AVATARS_CONFIG = OptimizeConfig(
    steps=80,
    learning_rate=0.2,
    l2_lambda=0.002,
    space="w",
    guidance="direction",
    orthogonal_lambda=0.35,
    views=1,
    guide_resolution=_GUIDE_RESOLUTION,
    start_samples=512,
)
AVATARS_GENERATE_CONFIG = dataclasses.replace(AVATARS_CONFIG, mode="generate")
# How many random images to choose the start from.
AVATARS_GENERATE_SAMPLES = 512

# Their generator synthesizes the same image in a neighborhood of every latent, which small steps
# do not leave.
AVATARS_MAPPER_CONFIG = MapperTrainConfig(
    learning_rate=8.0, latent_l2_lambda=0.3, guidance="direction", orthogonal_lambda=0.6
)
# Further flags of train_mapper.py.
AVATARS_MAPPER_RUN: dict[str, Any] = {
    "batch_size": 8,
    "max_steps": 1000,
    "val_interval": 200,
    "save_interval": 200,
    "start_samples": 512,
}

# A mapper for any text.
AVATARS_DELTA_CONFIG = DeltaTrainConfig(direction_noise=0.5)
# Further flags of train_mapper.py --mapper_type=DeltaMapper.
AVATARS_DELTA_RUN: dict[str, Any] = {
    "rgb": True,
    "width": 128,
    "train_dataset_size": 20000,
    "test_dataset_size": 512,
    "pair_redraw": 0.1,
    "pair_reach": 4,
    "max_steps": 20000,
    "val_interval": 2000,
    "save_interval": 2000,
    "image_interval": 2000,
}

# Their channels are entries of w.
AVATARS_DIRECTIONS = DirectionDefaults(strength=None, threshold=0.2)
AVATARS_RELEVANCE_CONFIG = RelevanceConfig(
    space="w",
    range=2.0,
    num_images=48,
    preprocess="styleclip",
    guide_resolution=_GUIDE_RESOLUTION,
)
AVATARS_STYLEMC_CONFIG = StyleMCConfig(guide_resolution=_GUIDE_RESOLUTION, preprocess="styleclip")

# Their latents have a larger scale than those of official generators.
AVATARS_INVERT_CONFIG = InvertConfig(learning_rate=0.05, latent_lambda=1e-4)
