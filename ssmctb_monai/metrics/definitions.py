"""Metrics of anomaly detection: their definitions, and their values for any weighting of the cases.

A metric is a function of how often each case counts: once each for the metric itself, and as often as the patient was
drawn for a resample of the patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssmctb_monai.checks import Named
from ssmctb_monai.metrics.pooled_cases import PooledCases
from ssmctb_monai.metrics.ranking import (
    area_up_to,
    auroc,
    average_precision,
    best_dice,
    dice,
    from_top,
    mean_height,
    ratio,
)

AUPRO_LIMIT = 0.3
FROC_PLACES = (0.25, 0.5, 1, 2, 4, 8)  # of MONAI's compute_froc_score

Level = Literal["slice", "pixel", "lesion", "volume"]


@dataclass(frozen=True)
class MetricDefinition:
    """A metric and what it means.

    Attributes:
        title: short name for tables.
        level: what is counted.
        definition: what the metric says, and its source.
        compute: function of the cases and of how often each counts, shape (sets, cases); gives one value a set, NaN
            where it is not defined.
        undefined: why the metric may not be defined.
        needs_threshold: whether the metric is one at the label-free threshold.
        needs_boxes: whether the metric is one of boxes, which only ``EvaluationSettings(box_levels=…)`` counts.
        needs_volumes: whether the metric is one of the lesions' volumes.
        needs_slices: whether the metric is one of slices, which the settings count where enough of them is brain.
        unit: unit, ``None`` for a share or a correlation.
        higher_is_better: ``None`` where neither is, as for a bias.
    """

    title: str
    level: Level
    definition: str
    compute: Callable[[PooledCases, np.ndarray], np.ndarray]
    undefined: str
    needs_threshold: bool = False
    needs_boxes: bool = False
    needs_volumes: bool = False
    needs_slices: bool = False
    unit: str | None = None
    higher_is_better: bool | None = True

    @property
    def needs_masks(self) -> bool:
        """Whether it matters where anomalies are, not only which slices have some."""
        return self.level in ("pixel", "lesion") or self.needs_volumes

    def values(self, pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
        """Computes the metric.

        Args:
            pooled: the cases.
            weights: how often each case counts, shape (sets, cases).

        Returns:
            One value a set; NaN where it is not defined.
        """
        if (self.needs_threshold and not pooled.has_threshold) or (self.needs_boxes and not pooled.has_boxes):
            return np.full(len(weights), np.nan)
        return self.compute(pooled, weights)

    def reason(self, pooled: PooledCases) -> str:
        """Says why the metric is not defined."""
        if self.needs_threshold and not pooled.has_threshold:
            return "no label-free threshold was given"
        if self.needs_boxes and not pooled.has_boxes:
            return "the settings left boxes out (box_levels)"
        if self.needs_slices and not pooled.has_slices:
            return "needs a slice with top_k voxels of brain"
        return self.undefined


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the cases where a value is defined."""
    is_defined = ~np.isnan(values)
    return ratio(weights @ np.where(is_defined, values, 0), weights @ is_defined)


def _per_case(
    metric: Callable[[PooledCases, np.ndarray], np.ndarray],
) -> Callable[[PooledCases, np.ndarray], np.ndarray]:
    """Mean over the cases of a metric of each."""
    once = np.ones((1, 1))

    def compute(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
        return _mean(np.array([metric(case, once)[0] for case in pooled.single_cases]), weights)

    return compute


def _average_precision_of_both(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """Average precision where both classes exist."""
    return np.where(normal.sum(axis=-1) > 0, average_precision(normal, anomalous), np.nan)


def _slice_auroc(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    return pooled.slices.apply(auroc, weights)


def _position_matched_auroc(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    """Mean over the lesion slices of the share of the normal slices at their height that score lower."""
    owner, partners, won = pooled.height_matches
    return np.array([_mean(ratio(won @ row, partners @ row), row[owner][None])[0] for row in weights])


def _matched_share(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    owner, partners, _ = pooled.height_matches
    return np.array([ratio(row[owner] @ (partners @ row > 0), row[owner].sum()) for row in weights])


def _alarm_share(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    normal = pooled.column(lambda case: (case.slices["lesion_voxels"] == 0).sum())
    return ratio(weights @ pooled.flagged_column(lambda flagged: flagged.normal_slices), weights @ normal)


def _pixel_auroc(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    return pooled.voxels.apply(auroc, weights)


def _pixel_average_precision(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    return pooled.voxels.apply(average_precision, weights)


def _aupro(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    def metric(normal: np.ndarray, shares: np.ndarray, count: np.ndarray) -> np.ndarray:
        false_positive_rate = ratio(from_top(normal), normal.sum(axis=-1, keepdims=True))
        return area_up_to(false_positive_rate, ratio(from_top(shares), count), AUPRO_LIMIT)

    return pooled.voxels.apply(metric, weights, pooled.column(lambda case: case.lesion_components), weighted=True)


def _best_dice(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    return pooled.voxels.apply(best_dice, weights)


def _dice(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    detected = weights @ pooled.flagged_column(lambda flagged: flagged.lesion)
    false_alarms = weights @ pooled.flagged_column(lambda flagged: flagged.normal)
    return dice(detected, false_alarms, weights @ pooled.column(lambda case: case.lesion.total) - detected)


def _sensitivity(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    found = pooled.flagged_column(lambda flagged: len(flagged.findings.lesions.found))
    return ratio(weights @ found, weights @ pooled.flagged_column(lambda flagged: flagged.findings.lesions.targets))


def _false_positives(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    return _mean(pooled.flagged_column(lambda flagged: len(flagged.findings.lesions.false_alarms)), weights)


def _froc_score(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    volumes = np.ones(len(pooled.cases))
    return pooled.detection_metric("lesions", volumes, lambda x, y: mean_height(x, y, FROC_PLACES), weights)


def _criterion(kind: Literal["regions", "tracks"]) -> Callable[[PooledCases, np.ndarray], np.ndarray]:
    def compute(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
        slices = pooled.column(lambda case: len(case.slices["score"]))
        return pooled.detection_metric(kind, slices, lambda x, y: area_up_to(x, y, limit=1), weights)

    return compute


def _volumes(pooled: PooledCases) -> tuple[np.ndarray, np.ndarray]:
    """True and flagged lesion volume of each case in ml."""
    flagged = pooled.flagged_column(lambda flagged: flagged.normal + flagged.lesion)
    return pooled.column(lambda case: case.lesion_volume), flagged * pooled.column(lambda case: case.voxel_volume)


def _volume_bias(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    true, predicted = _volumes(pooled)
    return _mean(predicted - true, weights)


def _volume_correlation(pooled: PooledCases, weights: np.ndarray) -> np.ndarray:
    true, predicted = _volumes(pooled)
    true, predicted = (volumes - volumes.mean() for volumes in (true, predicted))
    true, predicted = (volumes / (abs(volumes).max() or 1) for volumes in (true, predicted))

    def covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return _mean(one * other, weights) - _mean(one, weights) * _mean(other, weights)

    variances = covariance(true, true) * covariance(predicted, predicted)
    return ratio(covariance(true, predicted), np.sqrt(np.where(variances > 1e-12, variances, 0)))


_CLASSES = "needs {0} with and without lesions"
_LESION = "needs a lesion"

_DEFINITIONS = {
    "slice_auroc": MetricDefinition(
        "AUROC",
        "slice",
        "Area under the ROC curve over the slices of all cases, pooled (micro): probability that a slice with a lesion "
        "scores higher than one without, ties counting half (Hanley and McNeil, Radiology 1982, "
        "doi:10.1148/radiology.143.1.7063747).",
        _slice_auroc,
        _CLASSES.format("slices"),
        needs_slices=True,
    ),
    "slice_average_precision": MetricDefinition(
        "Average precision",
        "slice",
        "Average precision over the slices of all cases, pooled, without interpolation, as in scikit-learn.",
        lambda pooled, weights: pooled.slices.apply(average_precision, weights),
        "needs a slice with a lesion",
        needs_slices=True,
    ),
    "slice_auroc_position_matched": MetricDefinition(
        "AUROC, position-matched",
        "slice",
        "Share of the slices without a lesion at the same height that score lower than a slice with one, ties counting "
        "half; mean over the slices with a lesion that have such a partner. Heights are relative to "
        "the brain and the same up to 0.5 % or half a slice. Lesion-free slices crowd at vertex and base, so that "
        "position alone gives a high AUROC; here it gives little more than 0.5.",
        _position_matched_auroc,
        "needs slices with and without lesions at the same height",
        needs_slices=True,
    ),
    "slice_position_matched_share": MetricDefinition(
        "Lesion slices with a partner",
        "slice",
        "Share of the slices with a lesion for which there is a slice without one at the same height, in any case.",
        _matched_share,
        "needs a slice with a lesion",
        higher_is_better=None,
        needs_slices=True,
    ),
    "slice_auroc_macro": MetricDefinition(
        "AUROC, mean per case",
        "slice",
        "Mean over the cases of the AUROC over the slices of each (macro; Georgescu et al., TPAMI 2021, "
        "arXiv:2008.12328). Cases of one class alone do not count; the public scripts of papers on videos give each a "
        "normal frame that scores 0 and an anomalous one that scores 1, mostly after stretching its scores to [0, 1], "
        "so that all count.",
        _per_case(_slice_auroc),
        "needs a case that has slices with and without lesions",
        needs_slices=True,
    ),
    "slice_false_alarm_share": MetricDefinition(
        "Lesion-free slices that fire",
        "slice",
        "Share of the slices without a lesion whose score reaches the label-free threshold.",
        _alarm_share,
        "needs a slice without a lesion",
        needs_threshold=True,
        higher_is_better=False,
        needs_slices=True,
    ),
    "pixel_auroc": MetricDefinition(
        "AUROC",
        "pixel",
        "Area under the ROC curve over the voxels of all brains, pooled.",
        _pixel_auroc,
        _CLASSES.format("voxels"),
    ),
    "pixel_average_precision": MetricDefinition(
        "Average precision",
        "pixel",
        "Average precision over the voxels of all brains, pooled, without interpolation, as in scikit-learn.",
        _pixel_average_precision,
        _LESION,
    ),
    "pixel_auroc_per_case": MetricDefinition(
        "AUROC, mean per case",
        "pixel",
        "Mean over the cases of the AUROC over the voxels of each.",
        _per_case(_pixel_auroc),
        "needs a case that has voxels with and without lesions",
    ),
    "pixel_average_precision_per_case": MetricDefinition(
        "Average precision, mean per case",
        "pixel",
        "Mean over the cases with a lesion of the average precision over the voxels of each.",
        _per_case(_pixel_average_precision),
        _LESION,
    ),
    "pixel_aupro": MetricDefinition(
        "AUPRO up to 0.3",
        "pixel",
        "Area under the per-region overlap curve: mean share of a lesion (3D component of any size) that is flagged, "
        "over the share of normal voxels that are, from 0 to 0.3, divided by 0.3 (Bergmann et al., IJCV 2021, "
        "doi:10.1007/s11263-020-01400-4).",
        _aupro,
        "needs a lesion and normal voxels",
    ),
    "dice_at_threshold": MetricDefinition(
        "Dice at the label-free threshold",
        "pixel",
        "Dice coefficient of flagged and lesion voxels of all cases, pooled, at the label-free threshold.",
        _dice,
        _LESION,
        needs_threshold=True,
    ),
    "dice_at_threshold_per_case": MetricDefinition(
        "Dice at the label-free threshold, mean per case",
        "pixel",
        "Mean over the cases with a lesion of the Dice coefficient of each at the label-free threshold.",
        _per_case(_dice),
        _LESION,
        needs_threshold=True,
    ),
    "best_dice_oracle": MetricDefinition(
        "Best Dice (oracle)",
        "pixel",
        "Highest Dice coefficient that any one threshold reaches on the voxels of all cases, pooled. The threshold is "
        "chosen with the labels of these cases: an upper bound, not to be reached in use.",
        _best_dice,
        _LESION,
    ),
    "best_dice_oracle_per_case": MetricDefinition(
        "Best Dice per case (oracle)",
        "pixel",
        "Mean over the cases with a lesion of the highest Dice coefficient, each at a threshold chosen with the case's "
        "own label: an upper bound, not to be reached in use.",
        _per_case(_best_dice),
        _LESION,
    ),
    "lesion_sensitivity": MetricDefinition(
        "Sensitivity",
        "lesion",
        "Share of the lesions (3D components) found at the label-free threshold. A lesion is found when at least a "
        "tenth of it is covered by flagged components of which at least a tenth is lesion.",
        _sensitivity,
        "needs a lesion of the minimum size",
        needs_threshold=True,
    ),
    "false_positives_per_volume": MetricDefinition(
        "False positives",
        "lesion",
        "Number of flagged components per volume at the label-free threshold of which less than a tenth is lesion.",
        _false_positives,
        "needs a case",
        needs_threshold=True,
        unit="per volume",
        higher_is_better=False,
    ),
    "froc_score": MetricDefinition(
        "FROC score",
        "lesion",
        "Mean sensitivity at 0.25, 0.5, 1, 2, 4 and 8 false positives per volume, interpolated, as MONAI's "
        "compute_froc_score. Components flagged at the label-free threshold count in the order of their highest score.",
        _froc_score,
        "needs a lesion of the minimum size",
        needs_threshold=True,
    ),
    "rbdc": MetricDefinition(
        "RBDC",
        "lesion",
        "Region-based detection criterion: area under the curve of found regions (2D components of the lesions in the "
        "slices; found by a flagged region with an intersection over union of at least 0.1) over false regions per "
        "slice, from 0 to 1 (Ramachandra and Jones, WACV 2020, arXiv:1902.05872). Regions are those flagged at the "
        "label-free threshold and count in the order of their highest score; the curve stays level beyond the last. "
        "The literature's, with regions of every threshold, are those of boxes.",
        _criterion("regions"),
        "needs a lesion of the minimum size",
        needs_threshold=True,
        needs_slices=True,
    ),
    "tbdc": MetricDefinition(
        "TBDC",
        "lesion",
        "Track-based detection criterion: as RBDC, for lesions (3D components), found when at least a tenth of their "
        "regions are (Ramachandra and Jones, WACV 2020, arXiv:1902.05872).",
        _criterion("tracks"),
        "needs a lesion of the minimum size",
        needs_threshold=True,
        needs_slices=True,
    ),
    "rbdc_of_boxes": MetricDefinition(
        "RBDC of boxes",
        "lesion",
        "Region-based detection criterion as in the literature on videos, a slice as frame: area under the curve of "
        "found regions over false alarms per slice, from 0 to 1, with regions flagged anew at each of many thresholds "
        "(Ramachandra and Jones, WACV 2020, arXiv:1902.05872). Regions are boxes around 2D components of any size; one "
        "is found by a flagged one with an intersection over union of at least 0.1, and flagged ones without such a "
        "partner are false alarms. Beyond the lowest threshold the curve stays level.",
        lambda pooled, weights: pooled.box_metric("regions", weights),
        _LESION,
        needs_boxes=True,
        needs_slices=True,
    ),
    "tbdc_of_boxes": MetricDefinition(
        "TBDC of boxes",
        "lesion",
        "Track-based detection criterion as in the literature on videos: as RBDC of boxes, for lesions (3D components "
        "of any size), found when at least a tenth of their regions are (Ramachandra and Jones, WACV 2020, "
        "arXiv:1902.05872).",
        lambda pooled, weights: pooled.box_metric("tracks", weights),
        _LESION,
        needs_boxes=True,
        needs_slices=True,
    ),
    "volume_auroc": MetricDefinition(
        "AUROC",
        "volume",
        "Area under the ROC curve over volumes; a volume has the score of its highest slice.",
        lambda pooled, weights: pooled.volumes.apply(auroc, weights),
        _CLASSES.format("volumes"),
    ),
    "volume_average_precision": MetricDefinition(
        "Average precision",
        "volume",
        "Average precision over volumes; a volume has the score of its highest slice.",
        lambda pooled, weights: pooled.volumes.apply(_average_precision_of_both, weights),
        _CLASSES.format("volumes"),
    ),
    "slab_auroc": MetricDefinition(
        "AUROC of slabs",
        "volume",
        "Area under the ROC curve over slabs, into which the brain is cut along its height; a slab has the score of "
        "its highest slice.",
        lambda pooled, weights: pooled.slabs.apply(auroc, weights),
        _CLASSES.format("slabs"),
        needs_slices=True,
    ),
    "slab_average_precision": MetricDefinition(
        "Average precision of slabs",
        "volume",
        "Average precision over slabs; a slab has the score of its highest slice.",
        lambda pooled, weights: pooled.slabs.apply(_average_precision_of_both, weights),
        _CLASSES.format("slabs"),
        needs_slices=True,
    ),
    "lesion_volume_bias": MetricDefinition(
        "Lesion volume, bias",
        "volume",
        "Mean over the cases of flagged minus true lesion volume, at the label-free threshold (Bland and Altman, "
        "Lancet 1986, doi:10.1016/S0140-6736(86)90837-8).",
        _volume_bias,
        "needs a case",
        needs_threshold=True,
        needs_volumes=True,
        unit="ml",
        higher_is_better=None,
    ),
    "lesion_volume_correlation": MetricDefinition(
        "Lesion volume, correlation",
        "volume",
        "Pearson correlation of flagged and true lesion volume over the cases, at the label-free threshold.",
        _volume_correlation,
        "needs cases of different volumes",
        needs_threshold=True,
        needs_volumes=True,
    ),
}

METRICS = Named("metric", _DEFINITIONS)
