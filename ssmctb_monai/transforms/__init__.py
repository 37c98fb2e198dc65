"""Transforms: checks, brain mask and intensities, lesion-free sampling, synthetic anomalies."""

from ssmctb_monai.transforms.brain import BrainMask, BrainMaskd, SelectChannelsd
from ssmctb_monai.transforms.check_case import CheckCased
from ssmctb_monai.transforms.erase_lesions import EraseLesions, EraseLesionsd
from ssmctb_monai.transforms.intensity import (
    RandContrast,
    RandContrastd,
    RestoreIntensityd,
    RobustScaleIntensity,
    RobustScaleIntensityd,
)
from ssmctb_monai.transforms.lesion_free import (
    LesionFreePositions,
    LesionFreePositionsd,
    LesionFreeRegion,
    LesionFreeRegiond,
    RandLesionFreeCrop,
    RandLesionFreeCropd,
)
from ssmctb_monai.transforms.perlin_noise import RandPerlinNoise
from ssmctb_monai.transforms.scores import MaskedGaussianSmooth, MaskedGaussianSmoothd
from ssmctb_monai.transforms.synthetic_anomaly import RandPerlinAnomaly, RandPerlinAnomalyd

__all__ = [
    "BrainMask",
    "BrainMaskd",
    "CheckCased",
    "EraseLesions",
    "EraseLesionsd",
    "LesionFreePositions",
    "LesionFreePositionsd",
    "LesionFreeRegion",
    "LesionFreeRegiond",
    "MaskedGaussianSmooth",
    "MaskedGaussianSmoothd",
    "RandContrast",
    "RandContrastd",
    "RandLesionFreeCrop",
    "RandLesionFreeCropd",
    "RandPerlinAnomaly",
    "RandPerlinAnomalyd",
    "RandPerlinNoise",
    "RestoreIntensityd",
    "RobustScaleIntensity",
    "RobustScaleIntensityd",
    "SelectChannelsd",
]
