"""The statistic of one case, from which all figures follow without its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssmctb_monai.metrics.ranking import auroc, average_precision

BINS = 2**16
LARGEST_LOGIT = 17.0  # of a probability in float32; scores crowd at 0 and 1, and the bins with them


@dataclass(frozen=True)
class CaseStatistics:
    """Counts of one case: scores of normal and of lesion voxels, and the scores of its slices.

    Counts of several cases add up, so pooled figures need memory that does not grow with the number of voxels.

    Attributes:
        normal: number of lesion-free brain voxels per bin of the score: `BINS` equal bins of its logit.
        lesion: number of lesion voxels in the brain per bin.
        slice_scores: score of each slice.
        slice_lesion: whether the slice holds a lesion.
    """

    normal: np.ndarray
    lesion: np.ndarray
    slice_scores: np.ndarray
    slice_lesion: np.ndarray

    @classmethod
    def of(cls, anomaly_map: Tensor, label: Tensor, brain: Tensor, top_k: int = 20) -> CaseStatistics:
        """Counts a case.

        A slice (along the last axis, axial in RAS orientation) counts where it holds at least ``top_k`` brain voxels.
        Its score is the mean of the ``top_k`` highest voxels in the brain; it holds a lesion where a brain voxel does.

        Args:
            anomaly_map: scores in [0, 1], shape (1, …).
            label: lesion mask of the same shape; every voxel that is not 0 is lesion.
            brain: brain mask of the same shape.
            top_k: number of voxels whose mean is the slice's score.

        Returns:
            The statistic.

        Raises:
            ValueError: when shapes differ, a score is NaN or outside [0, 1], or the brain is empty.
        """
        if not anomaly_map.shape == label.shape == brain.shape:
            shapes = [tuple(tensor.shape) for tensor in (anomaly_map, label, brain)]
            raise ValueError(f"Anomaly map, label and brain mask differ in shape: {shapes}.")
        inside, lesion = (brain > 0).to(anomaly_map.device), (label != 0).to(anomaly_map.device)
        if not inside.any():
            raise ValueError("The brain mask is empty.")
        scores = torch.where(inside, anomaly_map.float(), -1.0)  # outside, below every score of a voxel that counts
        if not ((scores[inside] >= 0) & (scores[inside] <= 1)).all():  # also false for NaN
            raise ValueError("The anomaly map holds NaN or values outside [0, 1].")
        bins = ((torch.logit(scores.clamp(min=0)) / LARGEST_LOGIT + 1) * (BINS / 2)).clamp(0, BINS - 1).long()
        by_slice = scores.flatten(0, -2)
        counts = (by_slice >= 0).sum(dim=0) >= top_k
        return cls(
            normal=torch.bincount(bins[inside & ~lesion], minlength=BINS).numpy(force=True),
            lesion=torch.bincount(bins[inside & lesion], minlength=BINS).numpy(force=True),
            slice_scores=by_slice[:, counts]
            .topk(min(top_k, len(by_slice)), dim=0)
            .values.mean(dim=0)
            .numpy(force=True),
            slice_lesion=(inside & lesion).flatten(0, -2).any(dim=0)[counts].numpy(force=True),
        )


def _pooled(cases: Sequence[CaseStatistics]) -> tuple[np.ndarray, np.ndarray]:
    return np.sum([case.normal for case in cases], axis=0), np.sum([case.lesion for case in cases], axis=0)


def pixel_auroc(cases: Sequence[CaseStatistics]) -> float:
    """AUROC over the brain voxels of all cases, pooled.

    Args:
        cases: statistics.

    Returns:
        AUROC in [0, 1]; NaN where a class is empty.
    """
    return auroc(*_pooled(cases))


def pixel_average_precision(cases: Sequence[CaseStatistics]) -> float:
    """Average precision over the brain voxels of all cases, pooled.

    Args:
        cases: statistics.

    Returns:
        Average precision in [0, 1]; NaN where there is no lesion.
    """
    return average_precision(*_pooled(cases))


def slice_auroc(cases: Sequence[CaseStatistics]) -> float:
    """AUROC over the brain slices of all cases, pooled.

    Args:
        cases: statistics.

    Returns:
        AUROC in [0, 1]; NaN where a class is empty.
    """
    scores = np.concatenate([case.slice_scores for case in cases])
    lesion = np.concatenate([case.slice_lesion for case in cases])
    _, ranks = np.unique(scores, return_inverse=True)
    return auroc(np.bincount(ranks[~lesion], minlength=len(scores)), np.bincount(ranks[lesion], minlength=len(scores)))
