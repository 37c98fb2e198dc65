"""The record of a training: with what it ran, on what, and how it went."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import monai
import torch
from ignite.engine import Engine, Events

from ssmctb_monai import __version__
from ssmctb_monai.handlers.progress import TrainingProgress


class TrainingRecord:
    """Keeps a record of the training, for `TrainingCheckpoint` to write beside the network.

    The history goes on when training resumes. Attach the handler behind `TrainingProgress` and the validation.

    Args:
        evaluator: evaluator of the validation, for its metrics.
        progress: knows the mean losses of an epoch.
        cases: names of the cases that the network is trained on.
        seed: seed of the training.

    Example:
        >>> record = TrainingRecord(evaluator, TrainingProgress(loss), cases=["Made_001"], seed=0)
        >>> TrainingCheckpoint(..., record=record)
    """

    def __init__(self, evaluator: Engine, progress: TrainingProgress, cases: Sequence[str], seed: int) -> None:
        self.evaluator = evaluator
        self.progress = progress
        self.cases = list(cases)
        self.seed = seed
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._last = 0.0

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer.
        """
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training goes on with."""
        return {"history": self.history, "seconds": self.seconds, "cases": self.cases}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the record of an earlier run.

        Args:
            state: what :meth:`state_dict` returned; that of an earlier version has no cases.

        Raises:
            ValueError: when that run was trained on other cases.
        """
        before, now = set(state.get("cases", self.cases)), set(self.cases)
        if before != now:
            parts = [
                f"cases {', '.join(sorted(names))} are {what}"
                for names, what in ((before - now, "missing"), (now - before, "new"))
                if names
            ]
            raise ValueError(f"{' and '.join(parts)}: resume with those that training began with.")
        self.history, self.seconds = list(state["history"]), state["seconds"]

    def started(self, engine: Engine) -> None:
        """Starts the clock.

        Args:
            engine: trainer.
        """
        self._last = time.monotonic()

    def epoch_completed(self, engine: Engine) -> None:
        """Adds the time and, of an epoch that was validated, losses and metrics.

        Args:
            engine: trainer.
        """
        now = time.monotonic()
        self.seconds, self._last = self.seconds + now - self._last, now
        if self.evaluator.state.epoch == engine.state.epoch:
            self.history.append(
                {
                    "epoch": engine.state.epoch,
                    "losses": _finite(self.progress.means),
                    "figures": _finite(self.evaluator.state.metrics),
                }
            )

    def content(self, engine: Engine) -> dict[str, Any]:
        """Returns the record up to the present epoch, as it is written.

        Args:
            engine: trainer.
        """
        device = torch.device(engine.state.device)
        return {
            "versions": {"ssmctb_monai": __version__, "torch": torch.__version__, "monai": monai.__version__},
            "seed": self.seed,
            "number_of_cases": len(self.cases),
            "cases": self.cases,
            "epochs": engine.state.epoch,
            "iterations": engine.state.iteration,
            "seconds": round(self.seconds, 1),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "processes": idist.get_world_size(),
            "history": self.history,
        }


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON has them; those that are not defined are ``None``."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
