"""The way of every case into an evaluation: counted, or remembered with its problem; written for the viewer; logged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.config import PathLike

from ssmctb_monai.data.datasets import ValidCases
from ssmctb_monai.data.oriented_case import OrientedCase
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation
from ssmctb_monai.progress import Clock
from ssmctb_monai.visualize.heatmap import Heatmap
from ssmctb_monai.visualize.viewer import write_case

logger = logging.getLogger(__name__)

VIEWER = "viewer"  # folder beside the page, see page.js


class EvaluationRun:
    """Adds case after case to an evaluation; one that cannot be evaluated is logged, and the others go on.

    Args:
        evaluation: the evaluation.
        dataset: the cases, which know those that could not be prepared.
        viewer_dir: where cases with an image are written for the report's page to scroll through them; ``None`` writes
            none.

    Attributes:
        scans: names of the cases that were written for the viewer.

    Example:
        >>> unfinished = unfinished_folder(Path("report"))
        >>> run = EvaluationRun(evaluation, dataset, unfinished / VIEWER)
        >>> for item in dataset:
        ...     run.add(item["case_id"], anomaly_maps={"model": item["pred"]}, label=item["label"], brain=item["brain"])
        >>> run.take_problems()
        >>> write_report(evaluation, "report", scans=run.scans, unfinished=[unfinished])
    """

    def __init__(self, evaluation: AnomalyEvaluation, dataset: ValidCases, viewer_dir: PathLike | None = None) -> None:
        self.evaluation, self.dataset = evaluation, dataset
        self.viewer_dir = None if viewer_dir is None else Path(viewer_dir)
        self.scans: list[str] = []
        self._clock, self._added = Clock(), 0

    def add(self, case_id: str, *, files: Sequence[PathLike] = (), **arrays: Any) -> bool:
        """Adds a case.

        Args:
            case_id: name of the case.
            files: files of the case, which an error names.
            arrays: further arguments of :meth:`AnomalyEvaluation.add`.

        Returns:
            Whether it could be evaluated.
        """
        try:
            case = self.evaluation.add(case_id, **arrays)
        except ValueError as error:
            problem = f"{error} Its files: {', '.join(map(str, files))}" if files else str(error)
            logger.error("%s", problem)
            self.evaluation.fail(case_id, problem)
            is_valid = False
        else:
            self._show(case)
            is_valid = True
        self._added += 1
        done, count = self._added + len(self.dataset.problems), len(self.dataset.data)
        logger.info("Case %d/%d, %s | %s left", done, count, case_id, self._clock.left(done, count))
        return is_valid

    def take_problems(self) -> None:
        """Remembers the cases that could not be prepared, with their problems."""
        for case_id, problem in self.dataset.problems.items():
            self.evaluation.fail(case_id, problem)

    def _show(self, case: OrientedCase) -> None:
        if self.viewer_dir is None or not case.images:
            return
        first, *others = self.evaluation.methods
        beside = {name: self._heatmap(case, name) for name in others if not name.startswith("baseline_")}
        if write_case(self._heatmap(case, first), self.viewer_dir, beside=beside):
            self.scans.append(case.case_id)

    def _heatmap(self, case: OrientedCase, method: str) -> Heatmap:
        threshold = self.evaluation.thresholds.get(method)
        slices = self.evaluation.statistics[method][-1].slices
        value = None if threshold is None else threshold.value
        return Heatmap.of(case, slices, self.evaluation.settings, value, method=method)
