"""Checkpoints from which training resumes as if it had not been interrupted."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.config import PathLike
from torch import distributed, nn

from ssmctb_monai.checkpoints import Settings, beside, load_state
from ssmctb_monai.checks import check_positive
from ssmctb_monai.files import checksum, whole_file, write_json
from ssmctb_monai.handlers.training_record import TrainingRecord
from ssmctb_monai.metrics.threshold import LabelFreeThreshold, save_thresholds
from ssmctb_monai.options import differences

logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """Saves everything every few epochs (``training.pt``) and the network of the last validated one (``model.pt``).

    The last one, not the best: a choice by the validation's metrics would be one by labels. Unlike MONAI's
    ``CheckpointSaver`` it writes atomically, so that a killed run leaves the file as it was. ``model.pt`` is
    the network's state dict, as tools around MONAI expect. A loss that is not finite stops training before anything of
    that epoch is saved. Attach the handler behind `IntervalValidation`.

    Of several processes the first one writes, and all resume from its file, which may come from another number of
    processes, with another number of batches an epoch.

    Ctrl-C lets one process finish and save the epoch before it stops; a second one stops at once.

    Args:
        save_dir: folder of both files.
        save_dict: everything that training changes besides the trainer, by name: network, optimizer, scheduler, …;
            ``None`` where this training has none.
        network: network to save as ``model.pt``.
        evaluator: evaluator of the validation.
        resume: whether to go on from ``training.pt``; otherwise training starts anew and replaces all files.
        thresholds: gives the label-free thresholds of the epoch that was validated last, called in every process; they
            are kept in ``model_thresholds.json``.
        settings: what the network must be used with, such as modalities and spacing, kept in ``model_settings.json``
            with the checksum of ``model.pt``.
        record: record of the training, kept in ``model_record.json``.
        configuration: what shapes the training, as plain data by names, kept in ``training.pt``: a training that goes
            on with another value is refused.
        interval: epochs between two ``training.pt``; validated epochs and the last one are always saved.

    Raises:
        FileNotFoundError: when there is no ``training.pt`` to resume from.
        ValueError: when ``training.pt`` is damaged, or was made with other cases, another configuration, network,
            optimizer or, by as many processes, number of batches an epoch.
        RuntimeError: when the loss is not finite, or processes have different numbers of batches an epoch.
        KeyboardInterrupt: after Ctrl-C.
    """

    def __init__(
        self,
        save_dir: PathLike,
        save_dict: Mapping[str, Any],
        network: nn.Module,
        evaluator: Engine,
        resume: bool = False,
        thresholds: Callable[[], Mapping[str, LabelFreeThreshold]] | None = None,
        settings: Settings | None = None,
        record: TrainingRecord | None = None,
        interval: int = 1,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        check_positive(interval=interval)
        self.path, self.model_path = Path(save_dir) / "training.pt", Path(save_dir) / "model.pt"
        self.thresholds_path, self.settings_path = (
            beside(self.model_path, "thresholds"),
            beside(self.model_path, "settings"),
        )
        self.record_path = beside(self.model_path, "record")
        given = {**save_dict, "record": record}
        self.save_dict = {name: source for name, source in given.items() if source is not None}
        self.network = network
        self.evaluator = evaluator
        self.resume = resume
        self.thresholds = thresholds
        self.settings = settings
        self.record = record
        self.interval = interval
        self.configuration = configuration
        self.validated_epoch = self.saved_epoch = 0
        self._is_stopping = False
        self._on_interrupt: Any = None

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer.
        """
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.exception_raised)

    def _states(self, engine: Engine) -> dict[str, Any]:
        return {**self.save_dict, "trainer": engine}

    def started(self, engine: Engine) -> None:
        """Loads ``training.pt`` to resume from, and takes over Ctrl-C.

        Args:
            engine: trainer.
        """
        _check_same_length(engine)
        self._load(engine)
        if threading.current_thread() is threading.main_thread() and idist.get_world_size() == 1:
            self._is_stopping, self._on_interrupt = False, signal.signal(signal.SIGINT, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._release()
        self._is_stopping = True
        logger.warning("Stopping when this epoch is done and saved; Ctrl-C again stops at once.")

    def _release(self) -> None:
        """Gives Ctrl-C back to who had it."""
        if self._on_interrupt is not None:
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._on_interrupt = None

    def _load(self, engine: Engine) -> None:
        if not self.resume:
            if idist.get_rank() == 0:
                self._start_anew()
            return
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no {self.path} to resume from: train without `--resume true` first.")
        advice = f"train without `--resume true` to start anew; {self.model_path} is the network of the last validation"
        checkpoint = load_state(self.path, advice)
        self._check_configuration(checkpoint.pop("configuration", None))
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length  # the former may have been raised
        try:
            validated_epoch, processes = checkpoint.pop("validated_epoch"), checkpoint.pop("processes", 1)
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
        engine.state.max_epochs, self.validated_epoch = max_epochs, validated_epoch
        self.saved_epoch = engine.state.epoch
        logger.info("Resuming from %s behind epoch %d.", self.path, engine.state.epoch)

    def _check_configuration(self, before: Mapping[str, Any] | None) -> None:
        if before is None or self.configuration is None:  # of an earlier version; not asked for
            return
        if changed := differences(before, {**before, **self.configuration}):
            listed = "; ".join(f"{id} {now!r} in place of {was!r}" for id, (was, now) in changed.items())
            raise ValueError(
                f"The training of {self.path} cannot go on with {listed}: resume with the options that it began with "
                "(more epochs are taken), or train without `--resume true` to start anew."
            )

    def _start_anew(self) -> None:
        if self.path.is_file():
            logger.warning("Training starts anew and replaces %s; `--resume true` would go on from it.", self.path)
        for file in (self.path, self.model_path, self.thresholds_path, self.settings_path, self.record_path):
            file.unlink(missing_ok=True)

    def iteration_completed(self, engine: Engine) -> None:
        """Stops at a loss that is not finite.

        Args:
            engine: trainer.
        """
        if not torch.isfinite(engine.state.output["loss"]).all():
            raise RuntimeError(
                f"The loss in epoch {engine.state.epoch} is NaN or infinite: lower the learning rate or turn mixed "
                f"precision off. {self.path} holds an earlier epoch."
            )

    def epoch_completed(self, engine: Engine) -> None:
        """Saves everything that training changed, and the network where it was validated.

        Args:
            engine: trainer.
        """
        is_validated = self.evaluator.state.epoch == engine.state.epoch
        thresholds = self._label_free_thresholds() if is_validated else {}  # of the cases of all processes
        if idist.get_rank() > 0:
            return
        if is_validated:
            self.validated_epoch = engine.state.epoch
        is_only_one = engine.state.epoch == engine.state.max_epochs and not self.validated_epoch
        if is_only_one:
            logger.warning("No epoch was validated: %s is the network of the last one.", self.model_path)
        if is_validated or is_only_one:
            self._save_network(engine)
        if thresholds:
            save_thresholds(thresholds, self.thresholds_path)
        is_last = engine.state.epoch == engine.state.max_epochs
        if not (is_validated or is_last or self._is_stopping or engine.state.epoch % self.interval == 0):
            return
        state = {name: source.state_dict() for name, source in self._states(engine).items()}
        state |= {"validated_epoch": self.validated_epoch, "processes": idist.get_world_size()}
        state |= {} if self.configuration is None else {"configuration": self.configuration}
        with whole_file(self.path) as unfinished:
            torch.save(state, unfinished)
        self.saved_epoch = engine.state.epoch
        if self._is_stopping and not is_last:
            raise KeyboardInterrupt

    def completed(self, engine: Engine) -> None:
        """Says what was saved.

        Args:
            engine: trainer.
        """
        self._release()
        logger.info("Saved %s, the network of epoch %d.", self.model_path, self.validated_epoch or engine.state.epoch)

    def exception_raised(self, engine: Engine, error: BaseException) -> None:
        """Says how an interrupted training goes on.

        Args:
            engine: trainer.
            error: what interrupts it.
        """
        self._release()
        if isinstance(error, KeyboardInterrupt) and self.saved_epoch:
            logger.info(
                "Saved %s, epoch %d of %d: `--resume true` goes on.",
                self.path,
                self.saved_epoch,
                engine.state.max_epochs,
            )
        elif isinstance(error, KeyboardInterrupt):
            logger.info("Nothing was saved yet: the same command begins anew.")
        raise error

    def _save_network(self, engine: Engine) -> None:
        for file in (self.thresholds_path, self.record_path):  # they belong to an earlier network
            file.unlink(missing_ok=True)
        with whole_file(self.model_path) as unfinished:
            torch.save(self.network.state_dict(), unfinished)
            if self.settings is not None:  # before the network takes its place, so that a kill leaves none without
                self.settings.save(self.model_path, checksum(unfinished))
        if self.record is not None:
            write_json(self.record.content(engine), self.record_path)

    def _label_free_thresholds(self) -> Mapping[str, LabelFreeThreshold]:
        try:
            return self.thresholds() if self.thresholds is not None else {}
        except ValueError as error:
            logger.warning("There is no label-free threshold for %s: %s", self.model_path, error)
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
