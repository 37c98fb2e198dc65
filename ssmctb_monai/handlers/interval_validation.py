"""Validation in intervals, and of the last epoch."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler


class IntervalValidation(ValidationHandler):
    """MONAI's `ValidationHandler` that never leaves the last epoch out, also where it falls between two intervals.

    Args:
        interval: epochs between two validations.
        validator: evaluator.
        exec_at_start: whether to validate before the first epoch as well.

    Example:
        >>> IntervalValidation(4, evaluator).attach(trainer)  # of 10 epochs validates 4, 8 and 10
    """

    def __init__(self, interval: int, validator: Evaluator, exec_at_start: bool = False) -> None:
        super().__init__(interval, validator, epoch_level=True, exec_at_start=exec_at_start)

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer.
        """
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self.is_due), self)
        if self.exec_at_start:
            engine.add_event_handler(Events.STARTED, self)

    def is_due(self, engine: Engine, epoch: int) -> bool:
        """Tells whether an epoch is validated.

        Args:
            engine: trainer.
            epoch: number of the epoch.
        """
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs
