"""Adds the self-supervised loss of the blocks in a network to any loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssmctb_monai.networks.blocks import named_blocks


def block_reconstruction_loss(network: nn.Module) -> Tensor:
    """Sums what the blocks of a network kept in ``reconstruction_loss`` in their last forward pass.

    Only the last pass counts: for several of them before one backward pass, such as two views of an image, call this
    after each and add the results. A block that a pass uses twice counts with its last use.

    Args:
        network: any network; blocks are found at every depth, a shared one counts once.

    Returns:
        Scalar in the graph; 0 where there is no block or the network is in evaluation mode.

    Raises:
        RuntimeError: when a block is to be trained, but its forward pass ran without gradient, as it does in activation
            checkpointing with ``use_reentrant=True``. Under ``torch.no_grad`` nothing is raised.

    Example:
        >>> loss = dice(network(image), label) + 0.1 * block_reconstruction_loss(network)
    """
    losses = []
    for name, block in named_blocks(network).items():
        if block.reconstruction_loss is None:
            continue
        is_trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in block.parameters())
        if is_trained and not block.reconstruction_loss.requires_grad:
            raise RuntimeError(
                f"The loss of {type(block).__name__} {name!r} has no gradient, since its forward pass ran without one: "
                "checkpoint activations with use_reentrant=False; compute the loss of a pass under torch.no_grad there "
                "too; freeze the parameters of a block that is not to be trained."
            )
        losses.append(block.reconstruction_loss)
    return torch.stack(losses).sum() if losses else torch.zeros(())


class SelfSupervisedLoss(nn.Module):
    """Task loss + λ · block losses, for any loss and any network that contains blocks.

    Madan et al., *Self-Supervised Masked Convolutional Transformer Block for Anomaly Detection*, TPAMI 46(1), 2024,
    https://arxiv.org/abs/2209.12148.

    It holds under mixed precision, gradient accumulation, `DistributedDataParallel` (given the wrapped network or the
    bare one) and activation checkpointing with ``use_reentrant=False``. Copy it together with its network, as in
    ``copy.deepcopy((network, loss))``: a copy of the loss alone refers to a copy of the network that nobody runs.

    After each call ``parts`` holds the detached summands, unweighted, for logging: ``"block"``, and those of the task
    loss where it has ``parts`` itself, or else ``"task"``.

    Args:
        loss: task loss, called with what this loss is called with.
        network: the network whose blocks count; the loss does not own its parameters.
        weight: λ ≥ 0; the paper's 0.1, or 0.001 where the task loss is small.
        require_blocks: ``False`` takes a network without blocks, too; its block loss is 0.

    Raises:
        ValueError: when the network contains no block and ``require_blocks`` is set, or ``weight`` is negative.

    Example:
        >>> network = torch.nn.Sequential(SSMCTB(spatial_dims=3, channels=4))
        >>> loss = SelfSupervisedLoss(torch.nn.MSELoss(), network)
        >>> loss(network(image), image).backward()
    """

    def __init__(
        self, loss: Callable[..., Tensor], network: nn.Module, weight: float = 0.1, require_blocks: bool = True
    ) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight}.")
        if require_blocks and not named_blocks(network):
            raise ValueError(
                f"{type(network).__name__} contains no SSPCAB or SSMCTB block: there is no loss to add. Insert one, or "
                "give require_blocks=False."
            )
        self.loss = loss
        self.weight = weight
        self.parts: dict[str, Tensor] = {}
        self._network = [network]  # in a list, so that the network does not become a part of the loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the total loss of the network's last forward pass.

        Args:
            args: positional arguments of the task loss, such as prediction and target.
            kwargs: keyword arguments of the task loss.

        Returns:
            Scalar in the graph.

        Raises:
            RuntimeError: when a block is to be trained, but its forward pass ran without gradient, or no block in
                training mode ran at all.
        """
        task_loss = self.loss(*args, **kwargs)
        blocks = named_blocks(self._network[0]).values()
        waiting = [block.training and block.reconstruction_loss is None for block in blocks]
        if torch.is_grad_enabled() and waiting and all(waiting):
            raise RuntimeError(
                "No block of the network has run since it was set to training mode: call the network before its loss, "
                "on this network and not on a copy. DataParallel runs copies; take DistributedDataParallel."
            )
        block_loss = block_reconstruction_loss(self._network[0]).to(task_loss.device)
        task_parts = getattr(self.loss, "parts", {"task": task_loss.detach()})
        self.parts = {**task_parts, "block": block_loss.detach()}
        return task_loss + self.weight * block_loss
