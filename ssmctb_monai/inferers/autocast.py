"""Mixed precision for any inferer, on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class AutocastInferer(Inferer):
    """Runs an inferer under bfloat16 autocast.

    MONAI's engines autocast on CUDA only; as an inferer it works on a CPU too, in trainers and evaluators alike.
    bfloat16 needs no gradient scaler. On CPUs 3D convolutions that oneDNN computes wrongly in bfloat16 stay in float32,
    which holds within the call only and not for scripted networks: train those, and networks with activation
    checkpointing, whose second pass lies outside the call, with ``amp=False``.

    Args:
        inferer: inferer that calls the network.
        amp: ``True``, ``False``, or ``None``: in training, on devices that are faster in bfloat16 (CUDA devices, CPUs
            with AMX, AMD's with AVX-512 BF16). Not without gradients, so that maps are the same on every device.

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
        enabled = torch.is_grad_enabled() and _is_faster_in_bfloat16(device) if self.amp is None else self.amp
        guard = _UnsafeConvolutionsInFloat32() if enabled and device == "cpu" else nullcontext()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled), guard:
            return self.inferer(inputs, network, *args, **kwargs)


def _is_faster_in_bfloat16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return False
    # Intel's cores without AMX multiply bfloat16 at half of the rate: no gain, and the conversions cost
    return torch.cpu._is_amx_tile_supported() or "Intel" not in _cpu_name()


def _cpu_name() -> str:
    """Name of the processor, empty where PyTorch, before 2.13, does not tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return str(capabilities.get("cpu_name", ""))


class _UnsafeConvolutionsInFloat32(TorchFunctionMode):
    """Computes 3D convolutions, also transposed ones, in float32 unless oneDNN's bfloat16 was seen to be right.

    Where an axis is shorter than the kernel (PyTorch 2.13, AVX-512), with 7 voxels a side also where it is as long, the
    gradient of the weight reads and writes beyond its memory: in the bottleneck of small crops gradients were neither
    right nor repeatable, and some shapes crash. Kernels of up to 3 voxels on axes of at least their size were right.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.conv3d, torch.conv_transpose3d):
            arguments = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
            sizes, kernels = arguments["input"].shape[-3:], arguments["weight"].shape[-3:]
            if any(kernel > min(size, 3) for size, kernel in zip(sizes, kernels, strict=True)):
                with torch.autocast("cpu", enabled=False):
                    return func(*map(_in_float32, args), **{name: _in_float32(arg) for name, arg in kwargs.items()})
        return func(*args, **kwargs)


def _in_float32(argument: Any) -> Any:
    is_low = isinstance(argument, Tensor) and argument.dtype in (torch.bfloat16, torch.float16)
    return argument.float() if is_low else argument
