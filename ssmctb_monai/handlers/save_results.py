"""Saving the results of every scan that an evaluator runs over."""

from __future__ import annotations

import logging

from ignite.engine import Engine, Events

from ssmctb_monai.data.checks import InvalidCasesError
from ssmctb_monai.data.datasets import ValidCases
from ssmctb_monai.data.shards import wait_for_others
from ssmctb_monai.progress import Clock
from ssmctb_monai.reports.scan_results import ScanResults

logger = logging.getLogger(__name__)


class SaveResults:
    """Saves anomaly map and summary of each scan as soon as it is done.

    A scan that cannot be done is logged, and the others go on; at the end all such scans are raised together, so that
    the exit status tells.

    Args:
        results: where results go.
        dataset: the scans, which know those that could not be prepared.
        map_key: key of the anomaly map, on the scan's own grid.
        brain_key: key of the brain mask of the same shape.
        reconstruction_key: key of the reconstruction, where there is one.

    Raises:
        InvalidCasesError: when scans could not be done; the results of the others are written.
    """

    def __init__(
        self,
        results: ScanResults,
        dataset: ValidCases,
        map_key: str = "pred",
        brain_key: str = "brain",
        reconstruction_key: str = "reconstruction",
    ) -> None:
        self.results = results
        self.dataset = dataset
        self.map_key, self.brain_key, self.reconstruction_key = map_key, brain_key, reconstruction_key

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: evaluator.
        """
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, engine: Engine) -> None:
        """Starts the clock.

        Args:
            engine: evaluator.
        """
        self.clock = Clock()
        self.done = 0

    def iteration_completed(self, engine: Engine) -> None:
        """Saves the scans of a batch.

        Args:
            engine: evaluator.
        """
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            item = {**batch, **output}
            case_id = item["case_id"]
            try:
                self.results.add(case_id, item[self.map_key], item[self.brain_key], item.get(self.reconstruction_key))
            except ValueError as error:
                logger.error("%s", error)
                self.results.fail(case_id, str(error))
            self.done += 1
            done = self.done + len(self.dataset.problems)
            left = self.clock.left(done, len(self.dataset.data))
            logger.info("Scan %d/%d, %s | %s left", done, len(self.dataset.data), case_id, left)

    def completed(self, engine: Engine) -> None:
        """Writes down and raises what could not be done.

        Args:
            engine: evaluator.
        """
        for case_id, problem in self.dataset.problems.items():
            self.results.fail(case_id, problem)
        wait_for_others()
        self.results.finish()
        logger.info("Results: %s", self.results.output_dir)
        if problems := self.results.problems:
            raise InvalidCasesError(
                {case_id: [problem] for case_id, problem in problems.items()},
                f"{self.results.output_dir} has the results of the others; a rerun does what is missing.",
            )
