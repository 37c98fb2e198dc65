"""Evaluation of anomaly maps: cases go in one by one, metrics with intervals come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ignite.distributed as idist
import numpy as np
from torch import distributed

from ssmctb_monai.checks import Named
from ssmctb_monai.data.oriented_case import Array, OrientedCase
from ssmctb_monai.files import printable
from ssmctb_monai.metrics.case_statistics import CaseStatistics, CaseTruth, views_of
from ssmctb_monai.metrics.definitions import METRICS
from ssmctb_monai.metrics.pooled_cases import PooledCases
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.threshold import FALSE_POSITIVE_RATE, LabelFreeThreshold
from ssmctb_monai.metrics.view import View

CONFIDENCE = 0.95
DEFINED = 0.9  # share of the resamples in which a metric must be defined to have an interval


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval.

    Attributes:
        value: the metric; ``None`` where it is not defined.
        interval: lower and upper end of the 95 % interval; ``None`` where there is none.
        reason: why there is no value, or no interval; ``None`` where both exist.
    """

    value: float | None
    interval: tuple[float, float] | None
    reason: str | None

    @classmethod
    def of(cls, values: np.ndarray, patients: int, reason: str) -> Estimate:
        """Makes an estimate of a metric's value and its resamples.

        Args:
            values: the metric, then the metric in each resample, shape (1 + resamples,); NaN where it is not defined.
            patients: number of patients that were resampled.
            reason: why the metric may not be defined.

        Returns:
            The value with the interval that holds 95 % of the resamples, where at least 90 % of them are defined.

        Example:
            >>> Estimate.of(np.array([0.5, 0.25, 0.75]), patients=6, reason="needs a lesion").value
            0.5
        """
        value, resampled = values[0], values[1:][~np.isnan(values[1:])]
        if np.isnan(value):
            return cls(None, None, reason)
        if patients < 2:
            return cls(float(value), None, "an interval needs two patients")
        if len(resampled) < DEFINED * (len(values) - 1):
            return cls(float(value), None, f"too few resamples are defined: {reason}")
        low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return cls(float(value), (float(low), float(high)), None)


class AnomalyEvaluation:
    """Evaluates anomaly maps of one method or several on the same cases.

    Every case becomes one statistic, in a memory that does not grow with its voxels; statistics add up, also across
    processes. Intervals come from resampling the patients (Efron and Tibshirani, *An introduction to the bootstrap*,
    1993), differences between methods from the same resamples. Scores may have any range.

    Args:
        thresholds: label-free threshold of each method, by its name; metrics at the threshold of a method that has none
            are not defined.
        settings: what to count.
        metrics: names of the metrics, of `METRICS`, to estimate with intervals, which takes most of the time where
            there are many cases; all by default.

    Raises:
        KeyError: when a metric is unknown.

    Example:
        >>> evaluation = AnomalyEvaluation({"model": 0.5})
        >>> evaluation.add("case 1", {"model": anomaly_map, "baseline": flair}, label, brain)
        >>> evaluation.estimates("model")["pixel_average_precision"].interval
    """

    def __init__(
        self,
        thresholds: Mapping[str, float | LabelFreeThreshold] | None = None,
        settings: EvaluationSettings | None = None,
        metrics: Sequence[str] = tuple(METRICS),
    ) -> None:
        self.metrics = tuple(name for name in metrics if METRICS[name])  # whose error lists the names
        self.thresholds = {
            name: value if isinstance(value, LabelFreeThreshold) else LabelFreeThreshold(float(value), None, "given")
            for name, value in (thresholds or {}).items()
        }
        self.settings = settings or EvaluationSettings()
        self.statistics: dict[str, list[CaseStatistics]] = {}
        self.views: list[View] = []
        self.failed: dict[str, str] = {}

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order of the first case's maps."""
        return list(self.statistics)

    @property
    def cases(self) -> list[CaseStatistics]:
        """Statistics of the first method's maps; names and lesions are those of every method."""
        return next(iter(self.statistics.values()), [])

    def add(
        self,
        case_id: str,
        anomaly_maps: Mapping[str, Array],
        label: Array,
        brain: Array | None = None,
        *,
        patient_id: str | None = None,
        affine: Array | None = None,
        image: Array | None = None,
        lesion_free: Array | None = None,
    ) -> OrientedCase:
        """Adds a case.

        Args:
            case_id: name of the case.
            anomaly_maps: map of each method, by its name, shape (height, width, depth) or (1, height, width, depth);
                finite or infinite scores of any range. Outside the brain they are not looked at.
            label: lesion mask of the same shape; every voxel that is not 0 is lesion.
            brain: brain mask of the same shape; voxels of a lesion count in any case. ``None`` counts every voxel.
            patient_id: name of the patient; by default that of the case.
            affine: 4 x 4 matrix from voxels to RAS coordinates in mm of all arrays, or that of a `MetaTensor` among
                them; without one the last axis runs from the feet up, and voxels measure 1 mm³.
            image: image of the same shape for pictures.
            lesion_free: mask of regions that :meth:`label_free_thresholds` looks at.

        Returns:
            The case as it was counted, for pictures of it.

        Raises:
            ValueError: when shapes, affines or the methods differ, a label is negative or no whole number, the brain is
                empty, a score in it is NaN, or the case was added before; the case is named, and what was added before
                remains.
        """
        if any(case.case_id == case_id for case in self.cases):
            raise ValueError(f"{case_id}: the case was added before.")
        if not anomaly_maps or (self.methods and set(self.methods) != set(anomaly_maps)):
            expected, got = ", ".join(self.methods) or "a method", ", ".join(anomaly_maps) or "none"
            raise ValueError(f"{case_id}: expected maps of {expected}, got {got}.")
        if unknown := set(self.thresholds) - set(anomaly_maps):
            raise ValueError(f"{case_id}: there are thresholds of {', '.join(sorted(unknown))}, but no maps.")
        try:
            case = OrientedCase(
                case_id,
                {method: anomaly_maps[method] for method in self.methods or anomaly_maps},
                label,
                brain,
                patient_id=patient_id,
                affine=affine,
                images=None if image is None else {"image": image},
                lesion_free=lesion_free,
            )
            truth = CaseTruth(case, self.settings)
            added = {}
            for method in case.anomaly_maps:
                threshold = self.thresholds.get(method)
                try:
                    added[method] = CaseStatistics.of(method, truth, None if threshold is None else threshold.value)
                except ValueError as error:
                    raise ValueError(f"map of {method}: {error}") from error
            first = next(iter(added))
            views = views_of(case, added[first], first)
        except ValueError as error:
            raise ValueError(f"{case_id}: {str(error).removesuffix('.')}.") from error
        for method, statistics in added.items():
            self.statistics.setdefault(method, []).append(statistics)
        self.views += views
        self._forget_tables()
        return case

    def fail(self, case_id: str, problem: str) -> None:
        """Remembers a case that could not be evaluated.

        Args:
            case_id: name of the case.
            problem: what was wrong.
        """
        self.failed[printable(case_id)] = printable(problem)

    def gather(self) -> AnomalyEvaluation:
        """Joins the evaluations of all processes.

        Returns:
            An evaluation of all cases, in the order of their names, in every process; cases that a sampler gave to two
            processes count once. The evaluation itself where there is one process.

        Raises:
            ValueError: when processes evaluated different methods.
        """
        if idist.get_world_size() == 1:
            return self
        states: list[Any] = [None] * idist.get_world_size()
        distributed.all_gather_object(states, (self.statistics, self.views, self.failed))
        joined = AnomalyEvaluation(self.thresholds, self.settings, self.metrics)
        names = {tuple(statistics) for statistics, _, _ in states if statistics}
        if len(names) > 1:
            raise ValueError(f"Processes evaluated different methods: {sorted(names)}.")
        for method in next(iter(names), ()):
            by_case = {case.case_id: case for statistics, _, _ in states for case in statistics.get(method, [])}
            joined.statistics[method] = [by_case[case_id] for case_id in sorted(by_case)]
        joined.views = list({(v.case_id, v.kind): v for _, views, _ in states for v in views}.values())
        joined.failed = dict(sorted(pair for _, _, failed in states for pair in failed.items()))
        return joined

    def label_free_thresholds(self, false_positive_rate: float = FALSE_POSITIVE_RATE) -> dict[str, LabelFreeThreshold]:
        """Finds the threshold of each method from the lesion-free regions of the cases.

        Args:
            false_positive_rate: share of their voxels that may be flagged, in (0, 1).

        Returns:
            Threshold of each method.

        Raises:
            ValueError: when the rate is outside its range, or no case has a lesion-free region.
        """
        return {
            method: LabelFreeThreshold.of(
                [case.lesion_free for case in cases if case.lesion_free is not None], false_positive_rate
            )
            for method, cases in self.statistics.items()
        }

    def value(self, method: str, name: str) -> float:
        """Computes one metric over all cases, without interval.

        Args:
            method: name of the method.
            name: name of the metric, of `METRICS`.

        Returns:
            The metric; NaN where it is not defined.

        Raises:
            KeyError: when method or metric are unknown.
        """
        return float(METRICS[name].values(self.pooled[method], self._weights[:1])[0])

    def per_case(self, method: str, name: str) -> np.ndarray:
        """Computes one metric of each case.

        Args:
            method: name of the method.
            name: name of the metric, of `METRICS`.

        Returns:
            The metrics in the order of ``cases``; NaN where one is not defined.

        Raises:
            KeyError: when method or metric are unknown.
        """
        once = np.ones((1, 1))
        return np.array([METRICS[name].values(case, once)[0] for case in self.pooled[method].single_cases])

    def estimates(self, method: str) -> dict[str, Estimate]:
        """Computes the metrics of a method with their intervals.

        Args:
            method: name of the method.

        Returns:
            Estimates by the metric's name.

        Raises:
            KeyError: when the method is unknown.
        """
        pooled = self.pooled[method]
        estimates = {
            name: self._estimate(values, METRICS[name].reason(pooled))
            for name, values in self.resampled[method].items()
        }
        return Named("metric", estimates)

    def differences(self, method: str, reference: str) -> dict[str, Estimate]:
        """Computes the paired differences of two methods with their intervals, from the same resamples of the patients.

        Args:
            method: name of a method.
            reference: name of the method whose metrics are subtracted.

        Returns:
            Estimates of method - reference by the metric's name.

        Raises:
            KeyError: when a method is unknown.
        """
        differences = {}
        for name, values in self.resampled[method].items():
            others = self.resampled[reference][name]
            lacking = method if np.isnan(values[0]) else reference
            differences[name] = self._estimate(values - others, METRICS[name].reason(self.pooled[lacking]))
        return Named("metric", differences)

    @cached_property
    def pooled(self) -> dict[str, PooledCases]:
        """Tables of the statistics of each method."""
        return Named(
            "method",
            {method: PooledCases(cases, self.settings.slab_depth) for method, cases in self.statistics.items()},
        )

    @cached_property
    def _weights(self) -> np.ndarray:
        """How often each case counts, shape (1 + resamples, cases): once, and as often as its patient was drawn."""
        patients, patient_of_case = np.unique([case.patient_id for case in self.cases], return_inverse=True)
        shares = np.full(len(patients), 1 / max(1, len(patients)))
        drawn = np.random.default_rng(self.settings.seed).multinomial(len(patients), shares, self.settings.resamples)
        return np.concatenate([np.ones((1, len(self.cases))), drawn[:, patient_of_case]])

    @cached_property
    def resampled(self) -> dict[str, dict[str, np.ndarray]]:
        """Values of each method's metrics over all cases, then over each resample of the patients.

        By the names of method and metric, shape (1 + resamples,); NaN where a metric is not defined. Who is drawn
        depends on the patients and the seed of the settings alone, so that evaluations of the same patients by the same
        seed can be compared resample by resample.
        """
        distinct, places = np.unique(self._weights, axis=0, return_inverse=True)  # few patients have few resamples
        values = {
            method: {name: METRICS[name].values(pooled, distinct)[places.ravel()] for name in self.metrics}
            for method, pooled in self.pooled.items()
        }
        return Named("method", values)

    @property
    def patients(self) -> tuple[str, ...]:
        """Names of the patients, in alphabetical order."""
        return tuple(sorted({case.patient_id for case in self.cases}))

    def _estimate(self, values: np.ndarray, reason: str) -> Estimate:
        return Estimate.of(values, len(self.patients), reason)

    def _forget_tables(self) -> None:
        for name in ("pooled", "_weights", "resampled"):
            self.__dict__.pop(name, None)
