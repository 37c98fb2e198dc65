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
        amp: ``True``, ``False``, or ``None``: where the device computes in bfloat16, and so gains by it.

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
        enabled = computes_bfloat16(inputs.device) if self.amp is None else self.amp
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=enabled):
            return self.inferer(inputs, network, *args, **kwargs)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, instead of emulating it.

    Args:
        device: CPU or CUDA device.

    Returns:
        True where bfloat16 can be expected to be faster than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
