"""Adds the self-supervised loss of the blocks in a network to any loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssmctb_monai.networks.blocks import SelfSupervisedBlock


def block_reconstruction_loss(network: nn.Module) -> Tensor:
    """Sums what the blocks of a network kept in ``reconstruction_loss`` in their last forward pass.

    Args:
        network: any network; blocks are found at every depth, a shared one counts once.

    Returns:
        Scalar in the graph; 0 where there is no block or the network is in evaluation mode.

    Example:
        >>> loss = dice(network(image), label) + 0.1 * block_reconstruction_loss(network)
    """
    blocks = (module for module in network.modules() if isinstance(module, SelfSupervisedBlock))
    losses = [block.reconstruction_loss for block in blocks if block.reconstruction_loss is not None]
    return torch.stack(losses).sum() if losses else torch.zeros(())


class SelfSupervisedLoss(nn.Module):
    """Task loss + λ · block losses, for any loss and any network that contains blocks.

    Madan et al., *Self-Supervised Masked Convolutional Transformer Block for Anomaly Detection*, TPAMI 46(1), 2024,
    https://arxiv.org/abs/2209.12148.

    Args:
        loss: task loss, called with what this loss is called with.
        network: the network whose blocks count; the loss does not own its parameters.
        weight: λ ≥ 0; the paper's 0.1, or 0.001 where the task loss is small.

    Raises:
        ValueError: when the network contains no block, or ``weight`` is negative.

    Example:
        >>> network = torch.nn.Sequential(SSMCTB(spatial_dims=3, channels=4))
        >>> loss = SelfSupervisedLoss(torch.nn.MSELoss(), network)
        >>> loss(network(image), image).backward()
    """

    def __init__(self, loss: Callable[..., Tensor], network: nn.Module, weight: float = 0.1) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight}.")
        if not any(isinstance(module, SelfSupervisedBlock) for module in network.modules()):
            raise ValueError(f"{type(network).__name__} contains no SSPCAB or SSMCTB block: there is no loss to add.")
        self.loss = loss
        self.weight = weight
        self._network = [network]  # in a list, so that the network does not become a part of the loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the total loss of the network's last forward pass.

        Args:
            args: positional arguments of the task loss, such as prediction and target.
            kwargs: keyword arguments of the task loss.

        Returns:
            Scalar in the graph.
        """
        task_loss = self.loss(*args, **kwargs)
        return task_loss + self.weight * block_reconstruction_loss(self._network[0]).to(task_loss.device)
