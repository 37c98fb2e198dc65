"""Transforms: checks, brain mask and intensities, lesion-free sampling, synthetic anomalies."""

from ssmctb_monai.transforms.anomalies import (
    AnomalyBlend,
    AnomalyLabel,
    AnomalyShape,
    AnomalySource,
    AnotherPlaceSource,
    BinaryLabel,
    BoxShape,
    ContinuousLabel,
    DonorSource,
    EllipsoidShape,
    FolderSource,
    OffsetSource,
    PerlinShape,
    RandAnomaly,
    RandAnomalyd,
    RandPerlinNoise,
    SoftEdge,
    TextureSource,
    TissueShape,
)
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
from ssmctb_monai.transforms.modalities import RandDropModalities, RandDropModalitiesd
from ssmctb_monai.transforms.resolution import RandThickSlices, RandThickSlicesd
from ssmctb_monai.transforms.scores import (
    CalibrateScores,
    CalibrateScoresd,
    MaskedGaussianSmooth,
    MaskedGaussianSmoothd,
)
from ssmctb_monai.transforms.slices import RandSlicesd

__all__ = [
    "AnomalyBlend",
    "AnomalyLabel",
    "AnomalyShape",
    "AnomalySource",
    "AnotherPlaceSource",
    "BinaryLabel",
    "BoxShape",
    "BrainMask",
    "BrainMaskd",
    "CalibrateScores",
    "CalibrateScoresd",
    "CheckCased",
    "ContinuousLabel",
    "DonorSource",
    "EllipsoidShape",
    "EraseLesions",
    "EraseLesionsd",
    "FolderSource",
    "LesionFreePositions",
    "LesionFreePositionsd",
    "LesionFreeRegion",
    "LesionFreeRegiond",
    "MaskedGaussianSmooth",
    "MaskedGaussianSmoothd",
    "OffsetSource",
    "PerlinShape",
    "RandAnomaly",
    "RandAnomalyd",
    "RandContrast",
    "RandContrastd",
    "RandDropModalities",
    "RandDropModalitiesd",
    "RandLesionFreeCrop",
    "RandLesionFreeCropd",
    "RandPerlinNoise",
    "RandSlicesd",
    "RandThickSlices",
    "RandThickSlicesd",
    "RestoreIntensityd",
    "RobustScaleIntensity",
    "RobustScaleIntensityd",
    "SelectChannelsd",
    "SoftEdge",
    "TextureSource",
    "TissueShape",
]
