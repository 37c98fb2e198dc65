"""Progress of training, in lines that a person can follow."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class TrainingProgress:
    """Logs a line an epoch: mean loss and its parts over all processes, time and time left.

    Args:
        loss: the loss in use; what it holds in ``parts`` after each call, by name, is logged, too.

    Attributes:
        means: mean loss (``loss``) and its parts of the last epoch, by their names.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self.sums: dict[str, Tensor] = {}
        self.means: dict[str, float] = {}
        self.start = self.epoch_start = 0.0
        self.first_epoch: int | None = None

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def epoch_started(self, engine: Engine) -> None:
        """Notes the time, and the epoch from which training starts or resumes.

        Args:
            engine: trainer.
        """
        self.epoch_start = time.monotonic()
        self.sums = {}
        if self.first_epoch is None:
            self.start, self.first_epoch = self.epoch_start, engine.state.epoch

    def iteration_completed(self, engine: Engine) -> None:
        """Adds up the losses.

        Args:
            engine: trainer.
        """
        for name, value in {"loss": engine.state.output["loss"].detach(), **getattr(self.loss, "parts", {})}.items():
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
        left = (now - self.start) / (state.epoch - self.first_epoch + 1) * (state.max_epochs - state.epoch)
        logger.info(
            "Epoch %d/%d | loss %.4f%s | %.1f s | %s left",
            state.epoch,
            state.max_epochs,
            self.means["loss"],
            parts,
            now - self.epoch_start,
            timedelta(seconds=round(left)),
        )
