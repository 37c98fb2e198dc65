"""What a detector takes from lesion-free images without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from ssmctb_monai.checks import check_whole
from ssmctb_monai.networks.nets import Detector


class FitDetector:
    """Calls ``fit`` of a detector with lesion-free training images, before a validation uses it.

    What is fitted are buffers, such as a threshold or a memory, which the checkpoint of the validated epoch holds. On
    several processes those of the first one count. Detectors that fit nothing cost nothing.

    Args:
        network: the detector that is validated.
        data_loader: loader of the training, whose batches have ``image``, or ``image_clean`` where anomalies were put
            into it, and ``brain``.
        num_batches: number of batches.

    Raises:
        ValueError: when ``num_batches`` is not whole and positive.

    Example:
        >>> FitDetector(average.network, loader).attach(evaluator)
    """

    def __init__(self, network: Detector, data_loader: DataLoader, num_batches: int = 16) -> None:
        check_whole(1, num_batches=num_batches)
        self.network = network
        self.data_loader = data_loader
        self.num_batches = num_batches

    def attach(self, engine: Engine) -> None:
        """Attaches the handler.

        Args:
            engine: evaluator.
        """
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Fits the detector.

        Args:
            engine: evaluator.
        """
        device = next(self.network.parameters()).device

        def batches() -> Iterator[tuple[Tensor, Tensor]]:  # the loader starts with the first one that is asked for
            for batch in islice(self.data_loader, self.num_batches):
                image = "image_clean" if "image_clean" in batch else "image"
                # Without metadata, which random transforms make differ from sample to sample.
                yield convert_to_tensor(batch[image], device=device), convert_to_tensor(batch["brain"], device=device)

        self.network.fit(batches())
        if idist.get_world_size() > 1:
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, src=0)
