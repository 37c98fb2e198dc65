"""Statistics of many cases in tables, from which metrics are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from ssmctb_monai.metrics.boxes import box_criterion
from ssmctb_monai.metrics.case_statistics import CaseStatistics, Flagged
from ssmctb_monai.metrics.ranking import from_top, ratio
from ssmctb_monai.metrics.score_counts import ScoreCounts
from ssmctb_monai.metrics.score_table import ScoreTable

POSITION_TOLERANCE = 0.005  # of the brain's height, less than 1 mm; with more, position tells again


class PooledCases:
    """Statistics of the cases whose metrics are asked for, in tables that are made when first needed.

    Args:
        cases: statistics, all with a threshold or all without.
        slab_depth: depth of a slab in mm.
    """

    def __init__(self, cases: Sequence[CaseStatistics], slab_depth: float) -> None:
        self.cases = cases
        self.slab_depth = slab_depth

    @cached_property
    def single_cases(self) -> list[PooledCases]:
        """Each case by itself, in bins of its own."""
        return [PooledCases([case], self.slab_depth) for case in self.cases]

    @property
    def has_threshold(self) -> bool:
        """Whether the cases were counted with a threshold."""
        return all(case.flagged is not None for case in self.cases)

    @property
    def has_boxes(self) -> bool:
        """Whether the boxes of the cases were counted."""
        return all(case.boxes is not None for case in self.cases)

    @property
    def has_slices(self) -> bool:
        """Whether a slice was counted."""
        return any(len(case.slices["score"]) for case in self.cases)

    def column(self, value: Callable[[CaseStatistics], float]) -> np.ndarray:
        """Returns one number a case."""
        return np.array([value(case) for case in self.cases], dtype=float)

    def flagged_column(self, value: Callable[[Flagged], float]) -> np.ndarray:
        """Returns one number a case, of what is flagged in it."""
        return np.array([value(case.flagged) for case in self.cases if case.flagged], dtype=float)

    @cached_property
    def voxels(self) -> ScoreTable:
        """Scores of the voxels; those of a lesion have 1 / size of its component as weight."""
        return ScoreTable([case.normal for case in self.cases], [case.lesion for case in self.cases])

    @cached_property
    def slices(self) -> ScoreTable:
        """Scores of the slices."""
        return _table([(case.slices["score"], case.slices["lesion_voxels"] > 0) for case in self.cases])

    @cached_property
    def height_matches(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each slice with a lesion: its case, and per case the normal slices at its height and the share won.

        Shapes (slices,), (slices, cases) and (slices, cases); the last counts normal slices that score lower, and half
        of those that score the same.
        """
        has_lesion = [case.slices["lesion_voxels"] > 0 for case in self.cases]
        heights = [case.slices["relative_height"] for case in self.cases]
        scores = [case.slices["score"] for case in self.cases]
        owner = np.repeat(np.arange(len(self.cases)), [chosen.sum() for chosen in has_lesion])
        tolerance = np.array([max(POSITION_TOLERANCE, _half_a_slice(of_case)) for of_case in heights])[owner]
        height, score = (
            np.concatenate([column[chosen] for column, chosen in zip(columns, has_lesion, strict=True)])
            for columns in (heights, scores)
        )
        partners, won = np.zeros((2, len(owner), len(self.cases)))
        for case, chosen in enumerate(has_lesion):
            near = np.abs(height[:, None] - heights[case][~chosen]) <= tolerance[:, None] + 1e-9
            other = scores[case][~chosen]
            partners[:, case] = near.sum(axis=1)
            won[:, case] = (near * ((other < score[:, None]) + 0.5 * (other == score[:, None]))).sum(axis=1)
        return owner, partners, won

    @cached_property
    def slabs(self) -> ScoreTable:
        """Scores of the slabs: of each the highest of its slices."""
        return _table([_slabs(case, self.slab_depth) for case in self.cases])

    @cached_property
    def volumes(self) -> ScoreTable:
        """Scores of the volumes."""
        return _table([(np.array([case.volume_score]), np.array([case.lesion.total > 0])) for case in self.cases])

    @cached_property
    def detections(self) -> dict[str, tuple[ScoreTable, np.ndarray]]:
        """Tables of false alarms and found targets, and the number of targets of each case."""
        tables = {}
        for kind in ("lesions", "regions", "tracks"):
            found = [getattr(case.flagged.findings, kind) for case in self.cases if case.flagged]
            table = ScoreTable(
                [ScoreCounts.of(item.false_alarms) for item in found], [ScoreCounts.of(item.found) for item in found]
            )
            tables[kind] = table, np.array([item.targets for item in found])
        return tables

    def detection_metric(
        self,
        kind: Literal["lesions", "regions", "tracks"],
        units: np.ndarray,
        metric: Callable[[np.ndarray, np.ndarray], np.ndarray],
        weights: np.ndarray,
    ) -> np.ndarray:
        """Computes a metric of the free-response curve: share of targets found over false alarms per unit.

        Args:
            kind: what is to be found.
            units: number of volumes or slices of each case.
            metric: function of abscissae and ordinates.
            weights: how often each case counts, shape (sets, cases).

        Returns:
            Metrics, shape (sets,); NaN where there is no target.
        """
        table, targets = self.detections[kind]

        def of_counts(
            false_alarms: np.ndarray, found: np.ndarray, targets: np.ndarray, units: np.ndarray
        ) -> np.ndarray:
            return metric(ratio(from_top(false_alarms), units), ratio(from_top(found), targets))

        return table.apply(of_counts, weights, targets, units)

    def box_metric(self, kind: Literal["regions", "tracks"], weights: np.ndarray) -> np.ndarray:
        """Computes the regional criterion of the video literature.

        Args:
            kind: what is to be found.
            weights: how often each case counts, shape (sets, cases).

        Returns:
            Metrics, shape (sets,); NaN where there is no target.
        """
        frames = self.column(lambda case: len(case.slices["score"]))
        return box_criterion([case.boxes for case in self.cases if case.boxes], frames, kind, weights)


def _table(units: Sequence[tuple[np.ndarray, np.ndarray]]) -> ScoreTable:
    """Table of what has a score and either a lesion or none, for each case."""
    return ScoreTable(
        [ScoreCounts.of(scores[~has_lesion]) for scores, has_lesion in units],
        [ScoreCounts.of(scores[has_lesion]) for scores, has_lesion in units],
    )


def _half_a_slice(heights: np.ndarray) -> float:
    """Half the distance of the slices of a brain, relative to its height."""
    return float(np.diff(heights[np.isfinite(heights)]).min(initial=1)) / 2


def _slabs(case: CaseStatistics, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the slices with brain into as many slabs of at least a depth as fit, at least one."""
    in_brain = case.slices["brain_voxels"] > 0
    scores, has_lesion = case.slices["score"][in_brain], case.slices["lesion_voxels"][in_brain] > 0
    count = max(1, int(len(scores) * case.slice_thickness / depth + 1e-6))
    parts = np.array_split(np.arange(len(scores)), min(count, len(scores))) if len(scores) else []
    return (
        np.array([scores[part].max() for part in parts], dtype=float),
        np.array([has_lesion[part].any() for part in parts], dtype=bool),
    )
