"""Seeds every epoch by its number."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.data import DistributedSampler
from torch.utils.data import DataLoader

from ssmctb_monai.data.datasets import LesionFreeDataset


class EpochSeed:
    """Makes everything random in an epoch a function of seed and epoch, so that training can resume.

    Args:
        data_loader: loader of a `LesionFreeDataset` with a `monai.data.DistributedSampler` (also on one process, where
            it is a shuffle with a seed) and without persistent workers, which would keep an old epoch's number.

    Raises:
        TypeError: when the loader has other parts.
    """

    def __init__(self, data_loader: DataLoader) -> None:
        if not isinstance(data_loader.dataset, LesionFreeDataset):
            raise TypeError(f"Expected a LesionFreeDataset, got {type(data_loader.dataset).__name__}.")
        if not isinstance(data_loader.sampler, DistributedSampler):
            raise TypeError(f"Expected a monai.data.DistributedSampler, got {type(data_loader.sampler).__name__}.")
        if data_loader.persistent_workers:
            raise TypeError("Persistent workers would repeat the first epoch's samples: set persistent_workers=False.")
        self.dataset = data_loader.dataset

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seeds an epoch.

        Args:
            engine: trainer.
        """
        # MONAI's engines tell the sampler the epoch themselves.
        self.dataset.set_epoch(engine.state.epoch)
        torch.manual_seed(self.dataset.seed + engine.state.epoch)
