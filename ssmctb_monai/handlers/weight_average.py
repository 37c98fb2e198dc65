"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage:
    """Keeps the exponential moving average of a network's weights and batch statistics.

    Tarvainen and Valpola, *Mean teachers are better role models*, NeurIPS 2017, https://arxiv.org/abs/1703.01780. The
    first step copies the network, step n > 0 uses min(decay, (1 + n) / (10 + n)), so that the first weights are soon
    forgotten. On PyTorch's `AveragedModel`, which counts its steps in its state, and so resumes where it was (unlike
    ignite's ``EMAHandler`` with a warm-up). On several processes batch statistics are those of the first one, as in
    `DistributedDataParallel`; all averages are equal when an epoch ends.

    Args:
        network: network in training.
        decay: share of the average that a step keeps, in [0, 1); 0 follows the network.

    Raises:
        ValueError: when ``decay`` is outside its range.

    Example:
        >>> average = WeightAverage(network, decay=0.99)
        >>> evaluator = SupervisedEvaluator(network=average.network, ...)
    """

    def __init__(self, network: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}.")
        self.decay = decay
        self.source = network
        self.averaged = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True).eval()

    @property
    def network(self) -> nn.Module:
        """The network with averaged weights, in evaluation mode."""
        return self.averaged.module

    def _average(self, averages: Sequence[Tensor], currents: Sequence[Tensor], steps: Tensor | int) -> None:
        decay = min(self.decay, (1 + int(steps)) / (10 + int(steps)))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:  # a counter
                average.copy_(current)

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: trainer.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def __call__(self, engine: Engine) -> None:
        """Takes a step.

        Args:
            engine: trainer.
        """
        self.averaged.update_parameters(self.source)

    def epoch_completed(self, engine: Engine) -> None:
        """Gives all processes the averaged batch statistics of the first one.

        Args:
            engine: trainer.
        """
        if idist.get_world_size() > 1:
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, src=0)
