"""Curves of an evaluation, short enough to be drawn and to be kept in a report."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssmctb_monai.metrics.pooled_cases import PooledCases
from ssmctb_monai.metrics.ranking import from_top, ratio
from ssmctb_monai.metrics.score_table import ScoreTable

POINTS = 500


class Curve(NamedTuple):
    """Points of a curve.

    Attributes:
        x: abscissae.
        y: ordinates.
    """

    x: np.ndarray
    y: np.ndarray


def curves_of(pooled: PooledCases) -> dict[str, Curve]:
    """Computes the curves of a method over all cases.

    Args:
        pooled: the cases.

    Returns:
        ``slice_roc`` and ``pixel_roc`` (true over false positive rate), ``slice_pr`` and ``pixel_pr`` (precision over
        recall), and ``lesion_froc`` (sensitivity over false positives per volume), at most 500 points each; those that
        are not defined are left out.
    """
    curves = {}
    for level, table in (("slice", pooled.slices), ("pixel", pooled.voxels)):
        false_alarms, detected = _totals(table)
        recall = ratio(detected, detected[-1])
        curves[f"{level}_roc"] = Curve(ratio(false_alarms, false_alarms[-1]), recall)
        curves[f"{level}_pr"] = Curve(recall[1:], ratio(detected, detected + false_alarms)[1:])
    if pooled.has_threshold:
        table, targets = pooled.detections["lesions"]
        false_alarms, found = _totals(table)
        curves["lesion_froc"] = Curve(ratio(false_alarms, np.array(len(pooled.cases))), ratio(found, targets.sum()))
    return {name: _thinned(curve) for name, curve in curves.items() if np.isfinite(curve).all()}


def _totals(table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
    everything = np.ones(len(table.normal))
    return from_top(everything @ table.normal), from_top(everything @ table.anomalous)


def _thinned(curve: Curve) -> Curve:
    """Leaves out what a straight line shows as well, and, if that is not enough, points that lie close together."""
    x, y = curve
    if len(x) > POINTS:
        turns = [(values[1:-1] != values[:-2]) | (values[1:-1] != values[2:]) for values in (x, y)]
        chosen = np.concatenate([[True], turns[0] & turns[1], [True]])
        x, y = x[chosen], y[chosen]
    if len(x) > POINTS:
        scaled = np.minimum(x, 1) + np.log(np.maximum(x, 1))  # a FROC curve matters at its start
        steps = np.hypot(np.diff(scaled, prepend=scaled[0]), np.diff(y, prepend=y[0])).cumsum()
        chosen = np.unique(np.searchsorted(steps, np.linspace(0, steps[-1], POINTS)))
        x, y = x[chosen], y[chosen]
    return Curve(x, y)
