"""Checkpoints from which training resumes as if it had not been interrupted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from monai.config import PathLike
from torch import distributed, nn

from ssmctb_monai.checks import settings_file
from ssmctb_monai.files import write_json
from ssmctb_monai.metrics.threshold import LabelFreeThreshold, save_thresholds, thresholds_file

logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """Saves everything after every epoch (``training.pt``) and the network of the best one (``model.pt``).

    Unlike MONAI's ``CheckpointSaver`` it writes atomically, so that a killed run leaves the file of the epoch before,
    and it remembers the best figure when training resumes. ``model.pt`` is the network's state dict, as tools around
    MONAI expect. A loss that is not finite stops training before anything of that epoch is saved. Attach the handler
    behind the ``ValidationHandler``.

    Of several processes the first one writes, and all resume from its file, which may come from another number of
    processes, with another number of batches an epoch.

    Args:
        save_dir: folder of both files.
        save_dict: everything that training changes besides the trainer, by name: network, optimizer, scheduler, …
        network: network to save as the best one.
        evaluator: evaluator whose key metric says which epoch is the best.
        resume: whether to go on from ``training.pt``; otherwise training starts anew and replaces all files.
        thresholds: gives the label-free thresholds of the epoch that was validated last, called in every process; those
            of the best one are kept in ``model_thresholds.json``.
        settings: what the network must be used with, such as modalities and spacing, kept in ``model_settings.json``
            for :func:`~ssmctb_monai.checks.check_checkpoint`.

    Raises:
        FileNotFoundError: when there is no ``training.pt`` to resume from.
        ValueError: when ``training.pt`` was made with another network, optimizer or, by as many processes, number of
            batches an epoch.
        RuntimeError: when the loss is not finite, or processes have different numbers of batches an epoch.
    """

    def __init__(
        self,
        save_dir: PathLike,
        save_dict: Mapping[str, Any],
        network: nn.Module,
        evaluator: Engine,
        resume: bool = False,
        thresholds: Callable[[], Mapping[str, LabelFreeThreshold]] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.best_path = Path(save_dir) / "training.pt", Path(save_dir) / "model.pt"
        self.thresholds_path, self.settings_path = thresholds_file(self.best_path), settings_file(self.best_path)
        self.save = DiskSaver(str(save_dir), require_empty=False)
        self.save_dict = dict(save_dict)
        self.network = network
        self.evaluator = evaluator
        self.resume = resume
        self.thresholds = thresholds
        self.settings = settings

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer.
        """
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def _states(self, engine: Engine) -> dict[str, Any]:
        return {**self.save_dict, "trainer": engine}

    def started(self, engine: Engine) -> None:
        """Loads ``training.pt`` to resume from.

        Args:
            engine: trainer.
        """
        _check_same_length(engine)
        if not self.resume:
            if idist.get_rank() == 0:
                self._start_anew()
            self.evaluator.state.best_metric_epoch = -1  # a validation before training is no candidate
            return
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no {self.path} to resume from: train without `--resume true` first.")
        checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length  # the former may have been raised
        try:
            best, processes = checkpoint.pop("best"), checkpoint.pop("processes", 1)
            for name, target in self._states(engine).items():
                target.load_state_dict(checkpoint[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path} was made with another configuration: {error}") from error
        if processes != idist.get_world_size():
            logger.info("%s was made by %d processes, now there are %d.", self.path, processes, idist.get_world_size())
            engine.state.epoch_length, engine.state.iteration = epoch_length, engine.state.epoch * epoch_length
        if engine.state.epoch_length != epoch_length:
            raise ValueError(
                f"{self.path} was made with {engine.state.epoch_length} batches an epoch, now there are {epoch_length}:"
                " resume with the same cases and batch size."
            )
        engine.state.max_epochs = max_epochs
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = best["metric"], best["epoch"]
        logger.info("Resuming from %s behind epoch %d.", self.path, engine.state.epoch)

    def _start_anew(self) -> None:
        if self.path.is_file():
            logger.warning("Training starts anew and replaces %s; `--resume true` would go on from it.", self.path)
        for file in (self.path, self.best_path, self.thresholds_path, self.settings_path):
            file.unlink(missing_ok=True)

    def iteration_completed(self, engine: Engine) -> None:
        """Stops at a loss that is not finite.

        Args:
            engine: trainer.
        """
        if not torch.isfinite(engine.state.output["loss"]).all():
            raise RuntimeError(
                f"The loss in epoch {engine.state.epoch} is NaN or infinite: lower the learning rate or turn mixed "
                f"precision off. {self.path} holds the epoch before."
            )

    def epoch_completed(self, engine: Engine) -> None:
        """Saves the best network and everything that training changed.

        Args:
            engine: trainer.
        """
        best = self.evaluator.state
        is_best = best.best_metric_epoch == engine.state.epoch
        thresholds = self._label_free_thresholds() if is_best else {}  # of the cases of all processes
        if idist.get_rank() > 0:
            return
        is_only_one = engine.state.epoch == engine.state.max_epochs and not self.best_path.is_file()
        if is_only_one and not is_best:
            logger.warning("No epoch was validated: %s is the network of the last one.", self.best_path)
        if is_best or is_only_one:
            self.thresholds_path.unlink(missing_ok=True)  # they belong to an earlier network
            self.save(self.network.state_dict(), self.best_path.name)
            if self.settings is not None:
                write_json(self.settings, self.settings_path)
        if thresholds:
            save_thresholds(thresholds, self.thresholds_path)
        state = {name: source.state_dict() for name, source in self._states(engine).items()}
        state["best"] = {"metric": float(best.best_metric), "epoch": best.best_metric_epoch}
        state["processes"] = idist.get_world_size()
        self.save(state, self.path.name)

    def _label_free_thresholds(self) -> Mapping[str, LabelFreeThreshold]:
        try:
            return self.thresholds() if self.thresholds is not None else {}
        except ValueError as error:
            logger.warning("There is no label-free threshold for %s: %s", self.best_path, error)
            return {}


def _check_same_length(engine: Engine) -> None:
    """Raises where processes would wait for each other forever, such as when one of them left out a case."""
    lengths: list[int | None] = [engine.state.epoch_length] * idist.get_world_size()
    if len(lengths) > 1:
        distributed.all_gather_object(lengths, engine.state.epoch_length)
    if len(set(lengths)) > 1:
        raise RuntimeError(
            f"Processes have {lengths} batches an epoch, but all need as many: look in the log for cases that only one "
            "of them could not prepare."
        )
