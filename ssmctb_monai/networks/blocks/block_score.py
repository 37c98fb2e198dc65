"""What the blocks of a network think of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.networks.blocks.self_supervised_block import SelfSupervisedBlock, named_blocks


def block_score(network: nn.Module, x: Tensor, where: str = "") -> Tensor:
    """Scores every voxel by how badly the blocks of a network reproduce their inputs.

    The error e of each block, averaged over channels, is resized to the image and averaged over blocks and passes, and
    gives e / (1 + e).

    Args:
        network: network in evaluation mode that works at the size of its input.
        x: image of shape (batch, channels, height, width[, depth]). Where the network repeats each image for several
            passes, their errors are averaged.
        where: name of the sub-network whose blocks count; all of the network by default.

    Returns:
        Score in [0, 1), shape (batch, 1, height, width[, depth]).

    Raises:
        ValueError: when no block runs, or one runs on a batch that is no multiple of that of ``x``.

    Example:
        >>> network = DRAEM(spatial_dims=2, block="ssmctb").eval()
        >>> block_score(network, torch.rand(1, 1, 64, 64), where="reconstructive").shape
        torch.Size([1, 1, 64, 64])
    """
    errors: list[Tensor] = []

    def keep_error(block: SelfSupervisedBlock, args: tuple[Tensor], output: Tensor) -> None:
        error = block.error(output, args[0]).mean(dim=1)
        if error.shape[0] % x.shape[0]:
            raise ValueError(f"A block ran on a batch of {error.shape[0]}, which is no multiple of {x.shape[0]}.")
        # Where a network repeats each image for several passes, the passes take the place of channels.
        passes = error.unflatten(0, (x.shape[0], -1))
        errors.append(F.interpolate(passes, x.shape[2:], mode="bilinear" if x.dim() == 4 else "trilinear"))

    blocks = named_blocks(network.get_submodule(where)).values()
    hooks = [block.register_forward_hook(keep_error) for block in blocks]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not errors:
        raise ValueError(f"No block ran within {where or type(network).__name__}: take another score.")
    error = torch.cat(errors, dim=1).mean(dim=1, keepdim=True)
    return error / (1 + error)
