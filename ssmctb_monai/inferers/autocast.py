"""Mixed precision for any inferer, on any device."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn


class AutocastInferer(Inferer):
    """Runs an inferer under bfloat16 autocast.

    MONAI's engines autocast on CUDA only; as an inferer it works on a CPU too, in trainers and evaluators alike.
    bfloat16 needs no gradient scaler.

    Args:
        inferer: inferer that calls the network.
        amp: ``True``, ``False``, or ``None``: on CUDA devices with bfloat16. Not on CPUs: oneDNN's bfloat16 gradient of
            3D convolutions was seen to read stale memory where an axis has two voxels (PyTorch 2.13, AVX-512), as
            in the bottleneck of small crops; the results are neither right nor repeatable.

    Example:
        >>> inferer = AutocastInferer(SlidingWindowInferer(roi_size=(64, 64, 64)))
    """

    def __init__(self, inferer: Inferer, amp: bool | None = None) -> None:
        super().__init__()
        self.inferer = inferer
        self.amp = amp

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Runs the inferer.

        Args:
            inputs: input of the network.
            network: network.
            args: further positional arguments of the inferer.
            kwargs: further keyword arguments of the inferer.

        Returns:
            What the inferer returns.
        """
        device = inputs.device.type
        enabled = (device == "cuda" and torch.cuda.is_bf16_supported()) if self.amp is None else self.amp
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            return self.inferer(inputs, network, *args, **kwargs)
