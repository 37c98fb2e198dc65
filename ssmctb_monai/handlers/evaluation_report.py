"""Evaluation of every case that an evaluator runs over, and its report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.config import PathLike
from torch import distributed

from ssmctb_monai.data.checks import InvalidCasesError
from ssmctb_monai.data.datasets import ValidCases
from ssmctb_monai.data.writers import write_nifti
from ssmctb_monai.files import unfinished_folder
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation
from ssmctb_monai.reports.evaluation_run import VIEWER, EvaluationRun
from ssmctb_monai.reports.report import FILES, format_report, write_report

logger = logging.getLogger(__name__)

T = TypeVar("T")


class EvaluationReport:
    """Adds every case to an evaluation and writes the report, also of the cases before an interruption.

    A case that cannot be evaluated is logged, and the others go on; when the report is written, all such cases are
    raised together, so that the exit status tells. Of several processes the first one writes the report of all cases.

    Args:
        evaluation: the evaluation.
        dataset: the cases, which know those that could not be prepared.
        maps: key of each method's anomaly map, by the name of the method; maps have the shape of the label.
        output_dir: folder of the report.
        description: what is evaluated, in words.
        save_maps: whether to save the first method's maps beside the report, as ``maps/CASE.nii.gz``.
        viewer: whether to write the cases beside the report, for its page to scroll through them: 5 to 7 MB for one of
            240x240x155.
        self_contained: whether the page holds these cases itself, as one file to pass on.
        label_key: key of the label.
        brain_key: key of the brain mask.
        image_key: key of an image for pictures.

    Raises:
        InvalidCasesError: when cases could not be evaluated; the report of the others is written.
    """

    def __init__(
        self,
        evaluation: AnomalyEvaluation,
        dataset: ValidCases,
        maps: Mapping[str, str],
        output_dir: PathLike,
        description: str | None = None,
        save_maps: bool = False,
        viewer: bool = True,
        self_contained: bool = False,
        label_key: str = "label",
        brain_key: str = "brain",
        image_key: str = "image",
    ) -> None:
        self.evaluation = evaluation
        self.dataset = dataset
        self.maps = dict(maps)
        self.output_dir = Path(output_dir)
        self.description = description
        self.label_key, self.brain_key, self.image_key = label_key, brain_key, image_key
        self.viewer, self.self_contained, self.save_maps = viewer, self_contained, save_maps
        self.unfinished = unfinished_folder(self.output_dir)

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: evaluator.
        """
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.exception_raised)

    def started(self, engine: Engine) -> None:
        """Starts anew.

        Args:
            engine: evaluator.
        """
        self.run = EvaluationRun(self.evaluation, self.dataset, self.unfinished / VIEWER if self.viewer else None)
        self.is_written = False

    def iteration_completed(self, engine: Engine) -> None:
        """Adds the cases of a batch.

        Args:
            engine: evaluator.
        """
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            item = {**batch, **output}
            is_valid = self.run.add(
                item["case_id"],
                anomaly_maps={method: item[key] for method, key in self.maps.items()},
                label=item[self.label_key],
                brain=item[self.brain_key],
                patient_id=item["patient_id"],
                image=item[self.image_key][:1],
            )
            if is_valid and self.save_maps:
                first = next(iter(self.maps.values()))
                scan = getattr(item[self.image_key], "meta", {}).get("filename_or_obj")
                try:
                    write_nifti(item[first], self.unfinished / "maps" / f"{item['case_id']}.nii.gz", scan)
                except ValueError as error:  # its figures count
                    logger.error("The map of %s is not written: %s", item["case_id"], error)

    def completed(self, engine: Engine) -> None:
        """Writes the report, and raises what could not be evaluated.

        Args:
            engine: evaluator.
        """
        self.run.take_problems()
        evaluation = self.evaluation.gather()
        failed = self._write(evaluation, self.description, _gathered(self.run.scans), _gathered([self.unfinished]))
        idist.barrier()  # a process that ends with an error takes the others with it, also the one that writes
        if failed:
            advice = (
                f"{self.output_dir} reports the others." if self.evaluation.cases else "There is nothing to report."
            )
            raise InvalidCasesError({name: [problem] for name, problem in failed.items()}, advice)

    def exception_raised(self, engine: Engine, error: BaseException) -> None:
        """Writes the report of what this process evaluated before an error.

        Args:
            engine: evaluator.
            error: what interrupts it.
        """
        if self.evaluation.cases and not self.is_written:
            share = f" of one of {idist.get_world_size()} processes" if idist.get_world_size() > 1 else ""
            done = f"Interrupted: {len(self.evaluation.cases)} of {len(self.dataset.data)} cases{share}."
            logger.error("%s", done)
            self.run.take_problems()
            self._write(self.evaluation, f"{done} {self.description or ''}".strip(), self.run.scans, [self.unfinished])
        shutil.rmtree(self.unfinished, ignore_errors=True)
        raise error

    def _write(
        self, evaluation: AnomalyEvaluation, description: str | None, scans: Sequence[str], unfinished: Sequence[Path]
    ) -> Mapping[str, str]:
        """Writes the report in the first process; returns the cases that could not be evaluated."""
        self.is_written = True  # an error that is raised here comes back as another exception of the engine
        if evaluation.cases and idist.get_rank() == 0:
            report = write_report(evaluation, self.output_dir, description, scans, unfinished, self.self_contained)
            logger.info("\n%s\n\nWritten to %s: %s", format_report(report), self.output_dir, ", ".join(FILES))
        return evaluation.failed


def _gathered(names: list[T]) -> list[T]:
    """Joins the lists of all processes."""
    if idist.get_world_size() == 1:
        return names
    shares: list[Any] = [None] * idist.get_world_size()
    distributed.all_gather_object(shares, names)
    return [name for share in shares for name in share]
