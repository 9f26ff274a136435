"""The networks and the dataclasses of their architectures."""

from styleclip_jax.models.arcface import ArcFace, ArcFaceConfig
from styleclip_jax.models.card import MapperCard
from styleclip_jax.models.clip import CLIP, CLIPConfig
from styleclip_jax.models.delta_mapper import DeltaMapper, DeltaMapperConfig
from styleclip_jax.models.directions import Directions, DirectionsConfig
from styleclip_jax.models.e4e import E4E, E4EConfig
from styleclip_jax.models.lpips import LPIPS, LPIPSConfig
from styleclip_jax.models.mapper import (
    FullStyleSpaceMapper,
    LevelsMapper,
    MapperConfig,
    SingleMapper,
    WithoutToRGBStyleSpaceMapper,
)
from styleclip_jax.models.stylegan2 import Generator, GeneratorConfig

__all__ = [
    "CLIP",
    "E4E",
    "LPIPS",
    "ArcFace",
    "ArcFaceConfig",
    "CLIPConfig",
    "DeltaMapper",
    "DeltaMapperConfig",
    "Directions",
    "DirectionsConfig",
    "E4EConfig",
    "FullStyleSpaceMapper",
    "Generator",
    "GeneratorConfig",
    "LPIPSConfig",
    "LevelsMapper",
    "MapperCard",
    "MapperConfig",
    "SingleMapper",
    "WithoutToRGBStyleSpaceMapper",
]
