"""Ranking figures from counts per score, exact under ties."""

from __future__ import annotations

import numpy as np


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Area under the ROC curve: probability that an anomalous score is the higher of two, ties counting half.

    Hanley and McNeil, *The meaning and use of the area under a ROC curve*, Radiology 143(1), 1982,
    https://doi.org/10.1148/radiology.143.1.7063747.

    Args:
        normal: number of normal scores per bin, bins in ascending order of score.
        anomalous: number of anomalous scores per bin.

    Returns:
        Area in [0, 1]; NaN where a class is empty.

    Example:
        >>> auroc(np.array([2, 1, 0]), np.array([0, 1, 2]))  # 1 tie among 9 pairs
        0.9444444444444444
    """
    normal, anomalous = np.asarray(normal, dtype=np.float64), np.asarray(anomalous, dtype=np.float64)
    pairs = normal.sum() * anomalous.sum()
    below = normal.cumsum() - normal
    return float((anomalous * (below + normal / 2)).sum() / pairs) if pairs else float("nan")


def average_precision(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Average precision: Σ (Rₖ - Rₖ₋₁) Pₖ over the thresholds, without interpolation, as in scikit-learn.

    Args:
        normal: number of normal scores per bin, bins in ascending order of score.
        anomalous: number of anomalous scores per bin.

    Returns:
        Average precision in [0, 1]; NaN where there is no anomalous score.

    Example:
        >>> average_precision(np.array([2, 1, 0]), np.array([0, 1, 2]))  # 2/3 at precision 1, 1/3 at 3/4
        0.9166666666666666
    """
    normal, anomalous = np.asarray(normal, dtype=np.float64)[::-1], np.asarray(anomalous, dtype=np.float64)[::-1]
    total = anomalous.sum()
    if not total:
        return float("nan")
    detected, false_alarms = anomalous.cumsum(), normal.cumsum()
    flagged = detected + false_alarms
    precision = np.divide(detected, flagged, out=np.zeros_like(flagged), where=flagged > 0)
    return float((anomalous * precision).sum() / total)
