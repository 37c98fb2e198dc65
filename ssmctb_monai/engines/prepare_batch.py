"""What trainers take from a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor


class PrepareBatchReconstruction(PrepareBatch):
    """Input and target of a reconstruction network: the image, and what it should become.

    Args:
        image_key: key of the input.
        target_key: key of the target; as a default the input itself.

    Example:
        >>> trainer = SupervisedTrainer(..., prepare_batch=PrepareBatchReconstruction(), loss_function=nn.L1Loss())
    """

    def __init__(self, image_key: str = "image", target_key: str = "image") -> None:
        self.image_key = image_key
        self.target_key = target_key

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Moves input and target to the device.

        Args:
            batchdata: collated batch.
            device: device of the network.
            non_blocking: whether copies may overlap with computation.
            kwargs: further arguments of ``Tensor.to``.

        Returns:
            Input and target, each (batch, channels, …).
        """
        image, target = _moved(batchdata, (self.image_key, self.target_key), device, non_blocking, **kwargs)
        return image, target


class PrepareBatchAnomaly(PrepareBatch):
    """Input and targets of a reconstructive/discriminative pair: corrupted image; clean image and anomaly mask.

    Args:
        image_key: key of the corrupted image.
        clean_key: key of the clean image.
        mask_key: key of the anomaly mask.

    Example:
        >>> trainer = SupervisedTrainer(..., prepare_batch=PrepareBatchAnomaly(), loss_function=DRAEMLoss(3, network))
    """

    def __init__(
        self, image_key: str = "image", clean_key: str = "image_clean", mask_key: str = "anomaly_mask"
    ) -> None:
        self.image_key = image_key
        self.clean_key = clean_key
        self.mask_key = mask_key

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Moves input and targets to the device.

        Args:
            batchdata: collated batch.
            device: device of the network.
            non_blocking: whether copies may overlap with computation.
            kwargs: further arguments of ``Tensor.to``.

        Returns:
            Corrupted image (batch, channels, …), and the pair of clean image and mask (batch, 1, …).
        """
        keys = (self.image_key, self.clean_key, self.mask_key)
        image, clean, mask = _moved(batchdata, keys, device, non_blocking, **kwargs)
        return image, (clean, mask)


def _moved(
    batchdata: Mapping[str, Tensor],
    keys: tuple[str, ...],
    device: str | torch.device | None,
    non_blocking: bool,
    **kwargs: Any,
) -> list[Tensor]:
    return [batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs) for key in keys]
