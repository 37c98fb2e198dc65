"""What trainers take from a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

Tensors = Tensor | tuple[Tensor, ...]


class PrepareBatchKeys(PrepareBatch):
    """What the network takes and what its loss takes, each by one key of the batch or by several.

    Args:
        inputs: key of the network's input; several give a tuple.
        targets: key of the loss's target; several give a tuple.

    Example:
        >>> PrepareBatchKeys(inputs="image", targets="image")  # a reconstruction network
        >>> PrepareBatchKeys(inputs="image", targets=["image_clean", "anomaly_mask"])  # DRAEM and DRAEMLoss
    """

    def __init__(self, inputs: str | Sequence[str], targets: str | Sequence[str]) -> None:
        self.inputs = inputs
        self.targets = targets

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensors, Tensors]:
        """Moves inputs and targets to the device.

        Args:
            batchdata: collated batch.
            device: device of the network.
            non_blocking: whether copies may overlap with computation.
            kwargs: further arguments of ``Tensor.to``.

        Returns:
            Inputs and targets, each a tensor (batch, channels, …), or a tuple of them where there are several keys.

        Raises:
            KeyError: when the batch lacks a key.
        """

        def take(keys: str | Sequence[str]) -> Tensors:
            if not isinstance(keys, str):
                return tuple(move(key) for key in keys)
            return move(keys)

        def move(key: str) -> Tensor:
            if key not in batchdata:
                raise KeyError(f"The batch has no {key!r}, but {sorted(batchdata)}: name its keys in prepare_batch.")
            return batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)

        return take(self.inputs), take(self.targets)
