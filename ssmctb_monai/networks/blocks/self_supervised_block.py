"""What SSPCAB and SSMCTB have in common: predict the input from masked context, and keep the error as a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.networks.error_maps import ssim_map

BlockLoss = Literal["huber", "mse", "mae", "ssim"]


@torch.compiler.disable  # torch 2.13 compiles replicated borders of strided images wrong
def _ssim_error(output: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM at every position, per channel, over the value range of each target of the batch."""
    values = target.detach().flatten(1)
    value_range = (values.amax(dim=1) - values.amin(dim=1)).clamp_min(torch.finfo(values.dtype).eps)
    return 1 - ssim_map(output, target, value_range.view([-1] + [1] * (target.dim() - 1)))


def _huber_error(difference: Tensor, delta: float) -> Tensor:
    zero = difference.new_zeros(()).expand_as(difference)
    return F.huber_loss(difference, zero, reduction="none", delta=delta)


_POINTWISE_ERRORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "huber": _huber_error,
    "mse": lambda difference, delta: difference.square(),
    "mae": lambda difference, delta: difference.abs(),
}


def named_blocks(network: nn.Module) -> dict[str, SelfSupervisedBlock]:
    """Finds the blocks of a network, at every depth.

    Args:
        network: any network.

    Returns:
        The blocks by their dotted names, a shared one once.

    Example:
        >>> list(named_blocks(nn.Sequential(nn.ReLU(), SSPCAB(spatial_dims=2, channels=8))))
        ['1']
    """
    return {name: module for name, module in network.named_modules() if isinstance(module, SelfSupervisedBlock)}


class SelfSupervisedBlock(nn.Module):
    """Convolution, ReLU and attention, trained to reproduce the block's own input.

    Tensor in, tensor of the same shape out. In training mode the block keeps the loss of its last forward pass in
    ``reconstruction_loss``, a scalar in the graph; in evaluation mode that is ``None``. An exported block (TorchScript,
    ONNX, ``torch.export``) has no loss.

    Args:
        convolution: module that predicts its input from context, shape-preserving.
        attention: module that weights the prediction, shape-preserving.
        loss: error between output and input: ``"huber"``, ``"mse"``, ``"mae"`` or ``"ssim"`` (1 - SSIM with an
            11-wide Gaussian window, per channel, over the value range of each input of the batch; in float32).
        delta: where the Huber error turns from quadratic to linear; other losses do not use it.

    Raises:
        ValueError: when ``loss`` is unknown or ``delta`` is not positive.
    """

    def __init__(
        self,
        convolution: nn.Module,
        attention: nn.Module,
        loss: BlockLoss = "huber",
        delta: float = 1.0,
    ) -> None:
        super().__init__()
        if loss not in get_args(BlockLoss):
            raise ValueError(f"loss must be one of {sorted(get_args(BlockLoss))}, got {loss!r}.")
        if not delta > 0:
            raise ValueError(f"delta must be positive, got {delta}.")
        self.convolution = convolution
        self.attention = attention
        self.loss = loss
        self.delta = delta
        self.reconstruction_loss: Tensor | None = None

    def train(self, mode: bool = True) -> SelfSupervisedBlock:
        """Sets the mode and drops the loss of an earlier forward pass."""
        self.reconstruction_loss = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # A loss in the graph can be neither copied nor pickled, and it belongs to one forward pass only.
        return {**self.__dict__, "reconstruction_loss": None}

    def forward(self, x: Tensor) -> Tensor:
        """Reproduces ``x`` from masked context.

        Args:
            x: input of shape (batch, channels, height, width[, depth]).

        Returns:
            Tensor of the shape of ``x``, non-negative.
        """
        output = self._predict(x)
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops the outer branch only as it stands)
            if self.training:
                loss = self.error(output, x).sum() / x.numel()
                # Activation checkpointing runs the pass again within backward: that loss is not one more to count, and
                # it would keep its graph. No public function tells, and torch.compile traces none.
                if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
                    self.reconstruction_loss = loss
        return output

    @torch.jit.unused
    def anomaly_map(self, x: Tensor) -> Tensor:
        """The block's own anomaly score: how badly it reproduces each voxel.

        Args:
            x: input of shape (batch, channels, height, width[, depth]).

        Returns:
            The block's error averaged over channels, shape (batch, 1, height, width[, depth]), at least 0.
        """
        return self.error(self._predict(x), x).mean(dim=1, keepdim=True)

    @torch.jit.unused
    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """The block's loss before it is averaged.

        Args:
            output: output of the block, shape (batch, channels, height, width[, depth]).
            target: its input, of the same shape.

        Returns:
            Tensor of the same shape, at least 0, in float32 or float64.
        """
        # A mean over millions of squares needs more than the digits of half precision.
        with torch.autocast(output.device.type, enabled=False):
            dtype = torch.promote_types(output.dtype, torch.float32)
            output, target = output.to(dtype), target.to(dtype)
            # The network may go on with the output in place: a copy, or a difference, is kept for the gradient.
            if self.loss == "ssim":
                return _ssim_error(output.clone(), target)
            error = _POINTWISE_ERRORS[self.loss]
            difference = output - target
            if difference.is_contiguous():
                return error(difference, self.delta)
            # PyTorch lays the loss's gradient out by the order of the axes: channels-last tensors get their own order.
            return error(difference.movedim(1, -1), self.delta).movedim(-1, 1)

    def _predict(self, x: Tensor) -> Tensor:
        return self.attention(F.relu(self.convolution(x)))
