"""Statistics of many cases in tables, from which figures are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from ssmctb_monai.metrics.case_statistics import CaseStatistics, Flagged
from ssmctb_monai.metrics.ranking import from_top, ratio
from ssmctb_monai.metrics.score_counts import ScoreCounts
from ssmctb_monai.metrics.score_table import ScoreTable

POSITION_BINS = 10


class Pool:
    """Statistics of the cases whose figures are asked for, in tables that are made when first needed.

    Args:
        cases: statistics, all with a threshold or all without.
        slab_depth: number of slices of a slab.
    """

    def __init__(self, cases: Sequence[CaseStatistics], slab_depth: int) -> None:
        self.cases = cases
        self.slab_depth = slab_depth

    @cached_property
    def single_cases(self) -> list[Pool]:
        """Each case by itself, in bins of its own."""
        return [Pool([case], self.slab_depth) for case in self.cases]

    @property
    def has_threshold(self) -> bool:
        """Whether the cases were counted with a threshold."""
        return all(case.flagged is not None for case in self.cases)

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
    def slices_by_height(self) -> list[ScoreTable]:
        """Scores of the slices in each tenth of the brain's height."""
        parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(POSITION_BINS)]
        for case in self.cases:
            tenth = np.floor(case.slices["relative_height"] * POSITION_BINS + 1e-9)  # 0.3 * 10 is less than 3
            place = np.minimum(tenth, POSITION_BINS - 1)
            for index, part in enumerate(parts):
                chosen = place == index
                part.append((case.slices["score"][chosen], case.slices["lesion_voxels"][chosen] > 0))
        return [_table(part) for part in parts]

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

    def detection_figure(
        self,
        kind: Literal["lesions", "regions", "tracks"],
        units: np.ndarray,
        figure: Callable[[np.ndarray, np.ndarray], np.ndarray],
        weights: np.ndarray,
    ) -> np.ndarray:
        """Computes a figure of the free-response curve: share of targets found over false alarms per unit.

        Args:
            kind: what is to be found.
            units: number of volumes or slices of each case.
            figure: function of abscissae and ordinates.
            weights: how often each case counts, shape (sets, cases).

        Returns:
            Figures, shape (sets,); NaN where there is no target.
        """
        table, targets = self.detections[kind]

        def of_counts(
            false_alarms: np.ndarray, found: np.ndarray, targets: np.ndarray, units: np.ndarray
        ) -> np.ndarray:
            return figure(ratio(from_top(false_alarms), units), ratio(from_top(found), targets))

        return table.apply(of_counts, weights, targets, units)


def _table(units: Sequence[tuple[np.ndarray, np.ndarray]]) -> ScoreTable:
    """Table of what has a score and either a lesion or none, for each case."""
    return ScoreTable(
        [ScoreCounts.of(scores[~has_lesion]) for scores, has_lesion in units],
        [ScoreCounts.of(scores[has_lesion]) for scores, has_lesion in units],
    )


def _slabs(case: CaseStatistics, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the slices into as many slabs of at least a depth as fit, at least one."""
    scores, has_lesion = case.slices["score"], case.slices["lesion_voxels"] > 0
    parts = np.array_split(np.arange(len(scores)), max(1, len(scores) // depth)) if len(scores) else []
    return (
        np.array([scores[part].max() for part in parts], dtype=float),
        np.array([has_lesion[part].any() for part in parts], dtype=bool),
    )
