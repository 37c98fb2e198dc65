"""Progress of training and validation, in lines that a person can follow."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from statistics import fmean

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from ssmctb_monai.handlers.interval_validation import IntervalValidation
from ssmctb_monai.progress import Progress

logger = logging.getLogger(__name__)


class TrainingProgress:
    """Logs a line an epoch: mean loss and its parts over all processes, time, and time left with the validations.

    Attach the handler before the validation.

    Args:
        loss: the loss in use; what it holds in ``parts`` after each call, by name, is logged, too, and ``parts`` of the
            trainer's output.
        validation: the validation, whose times are told apart from those of epochs.

    Attributes:
        means: mean loss (``loss``) and its parts of the last epoch, by their names.
    """

    def __init__(self, loss: nn.Module, validation: IntervalValidation | None = None) -> None:
        self.loss = loss
        self.validation = validation
        self.sums: dict[str, Tensor] = {}
        self.means: dict[str, float] = {}
        self._epochs: list[float] = []  # seconds
        self._validations: list[float] = []
        self._is_validated = False
        self._last = 0.0

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer.
        """
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def started(self, engine: Engine) -> None:
        """Notes the time, before a validation that comes first.

        Args:
            engine: trainer.
        """
        self._last = time.monotonic()
        self._is_validated = self.validation is not None and self.validation.exec_at_start

    def epoch_started(self, engine: Engine) -> None:
        """Notes the time that the validation before took.

        Args:
            engine: trainer.
        """
        now = time.monotonic()
        if self._is_validated:
            self._validations.append(now - self._last)
        self._last = now
        self.sums = {}

    def iteration_completed(self, engine: Engine) -> None:
        """Adds up the losses.

        Args:
            engine: trainer.
        """
        output = engine.state.output
        parts = {**getattr(self.loss, "parts", {}), **output.get("parts", {})}
        for name, value in {"loss": output["loss"].detach(), **parts}.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def epoch_completed(self, engine: Engine) -> None:
        """Logs the line.

        Args:
            engine: trainer.
        """
        state, now = engine.state, time.monotonic()
        sums = idist.all_reduce(torch.stack(list(self.sums.values())))
        batches = state.epoch_length * idist.get_world_size()
        self.means = dict(zip(self.sums, (sums / batches).tolist(), strict=True))
        parts = " + ".join(f"{name} {value:.4f}" for name, value in self.means.items() if name != "loss")
        parts = f" ({parts})" if parts else ""
        seconds, self._last = now - self._last, now
        self._epochs.append(seconds)
        left = fmean(self._epochs) * (state.max_epochs - state.epoch)
        if self.validation is not None:
            self._is_validated = self.validation.is_due(engine, state.epoch)
            due = sum(self.validation.is_due(engine, epoch) for epoch in range(state.epoch, state.max_epochs + 1))
            left += fmean(self._validations or [0.0]) * due
        logger.info(
            "Epoch %d/%d | loss %.4f%s | %.1f s | %s left",
            state.epoch,
            state.max_epochs,
            self.means["loss"],
            parts,
            seconds,
            timedelta(seconds=round(left)),
        )


class ValidationProgress:
    """Logs how far a validation is, and its metrics.

    Example:
        >>> ValidationProgress().attach(evaluator)  # logs: Validation, epoch 3 | slice_auroc 0.9120 | 20.3 s
    """

    def attach(self, engine: Engine) -> None:
        """Attaches the handler, behind the metrics.

        Args:
            engine: evaluator.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.progress.step())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def epoch_started(self, engine: Engine) -> None:
        """Starts the clock.

        Args:
            engine: evaluator.
        """
        self.progress = Progress("Validated case", engine.state.epoch_length)

    def epoch_completed(self, engine: Engine) -> None:
        """Logs the metrics.

        Args:
            engine: evaluator.
        """
        metrics = "".join(f" | {name} {value:.4f}" for name, value in engine.state.metrics.items())
        seconds = time.monotonic() - self.progress.clock.start
        logger.info("Validation, epoch %d%s | %.1f s", engine.state.epoch, metrics, seconds)
