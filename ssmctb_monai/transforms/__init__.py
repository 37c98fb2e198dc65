"""Transforms: brain mask and intensities, lesion-free sampling, synthetic anomalies."""

from ssmctb_monai.transforms.brain import BrainMask, BrainMaskd, SelectChannelsd
from ssmctb_monai.transforms.intensity import RobustScaleIntensity, RobustScaleIntensityd
from ssmctb_monai.transforms.lesion_free import (
    LesionFreePositions,
    LesionFreePositionsd,
    RandLesionFreeCrop,
    RandLesionFreeCropd,
)
from ssmctb_monai.transforms.perlin_noise import RandPerlinNoise
from ssmctb_monai.transforms.synthetic_anomaly import RandPerlinAnomaly, RandPerlinAnomalyd

__all__ = [
    "BrainMask",
    "BrainMaskd",
    "LesionFreePositions",
    "LesionFreePositionsd",
    "RandLesionFreeCrop",
    "RandLesionFreeCropd",
    "RandPerlinAnomaly",
    "RandPerlinAnomalyd",
    "RandPerlinNoise",
    "RobustScaleIntensity",
    "RobustScaleIntensityd",
    "SelectChannelsd",
]
