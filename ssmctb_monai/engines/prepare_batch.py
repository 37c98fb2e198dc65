"""What trainers take from a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor


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
        image, clean, mask = (
            batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)
            for key in (self.image_key, self.clean_key, self.mask_key)
        )
        return image, (clean, mask)
