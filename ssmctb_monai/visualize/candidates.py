"""What a thresholded anomaly map asks a reader to look at: its components, the most suspicious one first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine

from ssmctb_monai.metrics.lesions import components
from ssmctb_monai.metrics.settings import EvaluationSettings


@dataclass(frozen=True)
class Candidate:
    """A flagged component.

    Attributes:
        score: its highest score, by which the evaluation ranks components too.
        volume: its volume in ml.
        voxel: index of its highest score; of several equal ones that with the lowest first index, then second, then
            third.
        position: where that voxel is, in mm to the right, the front and the head (RAS).
    """

    score: float
    volume: float
    voxel: tuple[int, int, int]
    position: tuple[float, float, float]


def find_candidates(
    anomaly_map: np.ndarray,
    threshold: float,
    affine: np.ndarray,
    inside: np.ndarray | None = None,
    min_size: int = EvaluationSettings.min_lesion_size,
) -> list[Candidate]:
    """Finds the connected components (26 neighbours) of what is at or above a threshold.

    They are those that the evaluation counts: lesions that are found, and false alarms.

    Args:
        anomaly_map: scores, shape (height, width, depth); NaN is never flagged.
        threshold: voxels with at least this score are flagged.
        affine: 4 x 4 matrix from voxels to RAS coordinates in mm.
        inside: mask of the voxels that count, such as the brain; ``None`` counts all.
        min_size: number of voxels of the smallest component that counts.

    Returns:
        The candidates, those with the highest score first, of equal ones the largest first.

    Raises:
        ValueError: when the map is no volume, or the mask has another shape.

    Example:
        >>> first = find_candidates(anomaly_map, 0.5, affine, brain)[0]
        >>> first.volume, first.position
        (4.2, (-31.5, 12.0, 40.5))
    """
    if anomaly_map.ndim != 3 or (inside is not None and inside.shape != anomaly_map.shape):
        shapes = f"{anomaly_map.shape}" + ("" if inside is None else f", its mask {inside.shape}")
        raise ValueError(f"Candidates are found in a volume and a mask of its shape; the map has shape {shapes}.")
    flagged = anomaly_map >= threshold
    labels = components(flagged if inside is None else flagged & (inside > 0), min_size).ravel()
    voxels = np.flatnonzero(labels)
    numbers, scores = labels[voxels] - 1, anomaly_map.ravel()[voxels]
    sizes = np.bincount(numbers)
    highest = np.full(len(sizes), -np.inf)
    np.maximum.at(highest, numbers, scores)  # scipy.ndimage would sort all voxels
    is_highest = scores == highest[numbers]
    _, first = np.unique(numbers[is_highest], return_index=True)
    peaks = np.stack(np.unravel_index(voxels[is_highest][first], anomaly_map.shape), axis=1)
    positions = apply_affine(affine, peaks)
    volumes = sizes * abs(np.linalg.det(affine[:3, :3])) / 1000
    return [
        Candidate(
            score=float(highest[index]),
            volume=float(volumes[index]),
            voxel=tuple(peaks[index].tolist()),
            position=tuple(positions[index].tolist()),
        )
        for index in np.lexsort((-sizes, -highest))
    ]
