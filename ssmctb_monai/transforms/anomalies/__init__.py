"""Synthetic anomalies: shape × source × blend × label."""

from ssmctb_monai.transforms.anomalies.blends import SoftEdge
from ssmctb_monai.transforms.anomalies.labels import BinaryLabel, ContinuousLabel
from ssmctb_monai.transforms.anomalies.parts import AnomalyBlend, AnomalyLabel, AnomalyShape, AnomalySource
from ssmctb_monai.transforms.anomalies.perlin_noise import RandPerlinNoise
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
    "BinaryLabel",
    "BoxShape",
    "ContinuousLabel",
    "DonorSource",
    "EllipsoidShape",
    "FolderSource",
    "NestedSource",
    "OffsetSource",
    "PerlinShape",
    "RandAnomaly",
    "RandAnomalyd",
    "RandPerlinNoise",
    "SoftEdge",
    "TextureSource",
    "TissueShape",
]
