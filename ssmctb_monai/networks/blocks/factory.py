"""Names of the blocks, for configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import nn

from ssmctb_monai.networks.blocks.ssmctb import SSMCTB
from ssmctb_monai.networks.blocks.sspcab import SSPCAB

BlockName = Literal["none", "sspcab", "ssmctb"]
Block = BlockName | Callable[[int], nn.Module] | None

NO_BLOCK = (None, "none")
_BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {
    "sspcab": lambda spatial_dims, channels: SSPCAB(spatial_dims, channels, reduction_ratio=min(8, channels)),
    "ssmctb": SSMCTB,
}


def make_block(block: Block, spatial_dims: int, channels: int) -> nn.Module | None:
    """Makes a block by its name, with the papers' defaults, or by a callable that knows better.

    SSPCAB's squeeze-and-excitation divides by 8, or by the number of channels where there are fewer.

    Args:
        block: ``"sspcab"``, ``"ssmctb"``, a callable from a number of channels to a shape-preserving module, or
            ``"none"`` or ``None``.
        spatial_dims: number of spatial dimensions, 2 or 3; a callable has its own.
        channels: number of input and of output channels.

    Returns:
        The block, if any.

    Raises:
        ValueError: when the name is unknown.

    Example:
        >>> make_block("ssmctb", spatial_dims=3, channels=16)
        >>> make_block(lambda channels: SSMCTB(3, channels, dilation=2), spatial_dims=3, channels=16)
    """
    if block in NO_BLOCK:
        return None
    if callable(block):
        return block(channels)
    if block not in _BLOCKS:
        raise ValueError(f"block must be one of {get_args(BlockName)} or a callable, got {block!r}.")
    return _BLOCKS[block](spatial_dims, channels)
