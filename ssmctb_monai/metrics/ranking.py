"""Ranking metrics from counts per score, exact under ties.

Counts come as arrays whose last axis runs over bins of ascending score; leading axes are independent sets of counts,
such as resamples of the patients, and remain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: probability that an anomalous score is the higher of two, ties counting half.

    Hanley and McNeil, *The meaning and use of the area under a ROC curve*, Radiology 143(1), 1982,
    https://doi.org/10.1148/radiology.143.1.7063747.

    Args:
        normal: number of normal scores per bin, shape (…, bins).
        anomalous: number of anomalous scores per bin, of the same shape.

    Returns:
        Areas in [0, 1], shape (…); NaN where a class is empty.

    Example:
        >>> float(auroc(np.array([2, 1, 0]), np.array([0, 1, 2])))  # 1 tie among 9 pairs
        0.9444444444444444
    """
    normal, anomalous = np.asarray(normal, dtype=np.float64), np.asarray(anomalous, dtype=np.float64)
    below = normal.cumsum(axis=-1) - normal / 2
    return ratio((anomalous * below).sum(axis=-1), normal.sum(axis=-1) * anomalous.sum(axis=-1))


def average_precision(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """Average precision: Σ (Rₖ - Rₖ₋₁) Pₖ over the thresholds, without interpolation, as in scikit-learn.

    Args:
        normal: number of normal scores per bin, shape (…, bins).
        anomalous: number of anomalous scores per bin, of the same shape.

    Returns:
        Average precision in [0, 1], shape (…); NaN where there is no anomalous score.

    Example:
        >>> float(average_precision(np.array([2, 1, 0]), np.array([0, 1, 2])))  # 2/3 at precision 1, 1/3 at 3/4
        0.9166666666666666
    """
    false_alarms, detected = from_top(normal), from_top(anomalous)
    precision = np.nan_to_num(ratio(detected, detected + false_alarms))
    gained = np.diff(detected, prepend=0)
    return ratio((gained * precision).sum(axis=-1), detected[..., -1])


def best_dice(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """Highest Dice coefficient over all thresholds: chosen with the labels, so an upper bound that only an oracle has.

    Args:
        normal: number of normal scores per bin, shape (…, bins).
        anomalous: number of anomalous scores per bin, of the same shape.

    Returns:
        Dice in [0, 1], shape (…); NaN where there is no anomalous score.
    """
    false_alarms, detected = from_top(normal), from_top(anomalous)
    lesion = detected[..., -1:]
    return dice(detected, false_alarms, lesion - detected).max(axis=-1)


def dice(detected: np.ndarray, false_alarms: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Dice coefficient; NaN where there is no anomalous score.

    Dice, *Measures of the amount of ecologic association between species*, Ecology 26(3), 1945,
    https://doi.org/10.2307/1932409.

    Args:
        detected: number of anomalous voxels above the threshold.
        false_alarms: number of normal voxels above the threshold.
        missed: number of anomalous voxels below the threshold.
    """
    has_lesion = np.where(detected + missed > 0, 1.0, np.nan)
    return has_lesion * ratio(2 * detected, 2 * detected + false_alarms + missed)


def area_up_to(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Mean height of a curve from 0 to a limit: straight between points, level beyond the last.

    Args:
        x: ascending abscissae, shape (…, points), the first 0.
        y: ordinates of the same shape.
        limit: right end, positive.

    Returns:
        Means, shape (…); NaN where the curve is.

    Example:
        >>> float(area_up_to(np.array([0.0, 1.0]), np.array([0.0, 1.0]), limit=0.5))
        0.25
    """
    start, width = np.minimum(x[..., :-1], limit), np.diff(x)
    inside = np.minimum(x[..., 1:], limit) - start
    slope = np.divide(np.diff(y), width, out=np.zeros_like(y[..., 1:]), where=width > 0)
    area = (inside * (y[..., :-1] + slope * inside / 2)).sum(axis=-1)
    return (area + np.maximum(limit - x[..., -1], 0) * y[..., -1]) / limit


def mean_height(x: np.ndarray, y: np.ndarray, places: Sequence[float]) -> np.ndarray:
    """Mean height of a curve at some places: straight between points, level beyond the last.

    Args:
        x: ascending abscissae, shape (…, points), the first 0.
        y: ordinates of the same shape.
        places: abscissae, not negative.

    Returns:
        Means, shape (…).
    """
    heights = []
    for place in places:
        last = (x <= place).sum(axis=-1, keepdims=True) - 1
        following = np.minimum(last + 1, x.shape[-1] - 1)
        x0, y0, x1, y1 = (np.take_along_axis(a, at, -1)[..., 0] for at in (last, following) for a in (x, y))
        heights.append(y0 + (y1 - y0) * np.nan_to_num(ratio(place - x0, x1 - x0)))
    return np.mean(heights, axis=0)


def from_top(counts: np.ndarray) -> np.ndarray:
    """Returns the number of scores at or above each bin, from the highest bin down, after a 0: shape (…, bins + 1)."""
    above = np.asarray(counts, dtype=np.float64)[..., ::-1].cumsum(axis=-1)
    return np.concatenate([np.zeros((*above.shape[:-1], 1)), above], axis=-1)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns the quotient; NaN where the denominator is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)
