"""Synthetic anomalies: shape × source × blend × label."""

from ssmctb_monai.transforms.anomalies.blends import PoissonBlend, SoftEdge
from ssmctb_monai.transforms.anomalies.labels import BinaryLabel, ContinuousLabel, FactorLabel, LogisticLabel
from ssmctb_monai.transforms.anomalies.parts import AnomalyBlend, AnomalyLabel, AnomalyShape, AnomalySource
from ssmctb_monai.transforms.anomalies.patches import (
    AreaPatchShape,
    GammaPatchShape,
    PatchShape,
    ScarShape,
    UniformPatchShape,
)
from ssmctb_monai.transforms.anomalies.perlin_noise import RandPerlinNoise
from ssmctb_monai.transforms.anomalies.poisson import poisson_blend
from ssmctb_monai.transforms.anomalies.published import (
    RandCutPaste,
    RandCutPasteClassd,
    RandForeignPatch,
    RandNaturalAnomaly,
)
from ssmctb_monai.transforms.anomalies.rand_anomaly import RandAnomaly, RandAnomalyd
from ssmctb_monai.transforms.anomalies.shapes import BoxShape, EllipsoidShape, PerlinShape, TissueShape
from ssmctb_monai.transforms.anomalies.sources import (
    AnotherPlaceSource,
    DonorSource,
    FolderSource,
    NestedSource,
    OffsetSource,
    TextureSource,
)

__all__ = [
    "AnomalyBlend",
    "AnomalyLabel",
    "AnomalyShape",
    "AnomalySource",
    "AnotherPlaceSource",
    "AreaPatchShape",
    "BinaryLabel",
    "BoxShape",
    "ContinuousLabel",
    "DonorSource",
    "EllipsoidShape",
    "FactorLabel",
    "FolderSource",
    "GammaPatchShape",
    "LogisticLabel",
    "NestedSource",
    "OffsetSource",
    "PatchShape",
    "PerlinShape",
    "PoissonBlend",
    "RandAnomaly",
    "RandAnomalyd",
    "RandCutPaste",
    "RandCutPasteClassd",
    "RandForeignPatch",
    "RandNaturalAnomaly",
    "RandPerlinNoise",
    "ScarShape",
    "SoftEdge",
    "TextureSource",
    "TissueShape",
    "UniformPatchShape",
    "poisson_blend",
]
