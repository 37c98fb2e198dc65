"""Masks that hide an image cell by cell, in disjoint sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ssmctb_monai.checks import check_whole


def cell_masks(ranks: Tensor, size: list[int], cell_size: list[int], num_sets: int) -> Tensor:
    """Deals the cells of images out to sets, and makes the mask of each, which hides its cells.

    Huang et al., *Self-Supervised Masking for Unsupervised Anomaly Detection and Localization*, IEEE TMM 25, 2023,
    https://arxiv.org/abs/2205.06568. The sets are disjoint, and together they hide all of the image; all have as many
    cells, up to rounding: the last one has fewer where their number cannot be divided, or none. It can be scripted and
    exported.

    Args:
        ranks: place of each cell in the order in which they are dealt, a permutation of 0, 1, … for each image, shape
            (batch, height, width[, depth]): as many along each axis as cells begin in the image. The first third of the
            order is the first of three sets.
        size: size of the images in voxels, along each axis.
        cell_size: size of a cell in voxels, along each axis; cells are cut at the high border of the image.
        num_sets: number of sets.

    Returns:
        Masks (batch, num_sets, height, width[, depth]), bool: what is visible.

    Example:
        >>> cell_masks(torch.tensor([[[0, 3], [2, 1]]]), size=[4, 3], cell_size=[2, 2], num_sets=2)[0, 0].int()
        tensor([[0, 0, 1],
                [0, 0, 1],
                [1, 1, 0],
                [1, 1, 0]], dtype=torch.int32)
    """
    number = ranks.flatten(1).shape[1]
    share = (number + num_sets - 1) // num_sets
    sets = torch.arange(num_sets, device=ranks.device).view([1, num_sets] + [1] * len(size))
    masks = ranks.div(share, rounding_mode="floor").unsqueeze(1) != sets
    for back in range(len(size)):  # from the last axis, so that most is copied in long runs
        axis = len(size) + 1 - back
        repeated = [-1] * (masks.dim() + 1)
        repeated[axis + 1] = cell_size[axis - 2]
        masks = masks.unsqueeze(axis + 1).expand(repeated).flatten(axis, axis + 1).narrow(axis, 0, size[axis - 2])
    return masks


def rand_cell_masks(
    batch: int,
    size: Sequence[int],
    cell_size: Sequence[int],
    num_sets: int,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws masks as :func:`cell_masks` makes them, at random and of its own for each image.

    Args:
        batch: number of images.
        size: size of the images in voxels, along each axis.
        cell_size: size of a cell in voxels, along each axis.
        num_sets: number of disjoint sets.
        device: device of the masks.
        generator: random numbers, of that device; as a default PyTorch's own.

    Returns:
        Masks (batch, num_sets, height, width[, depth]), bool: what is visible.

    Raises:
        ValueError: when ``size`` and ``cell_size`` are of different length, or a number is not whole and positive.

    Example:
        >>> rand_cell_masks(4, size=(96, 96), cell_size=(8, 8), num_sets=3).shape
        torch.Size([4, 3, 96, 96])
    """
    if len(size) != len(cell_size):
        raise ValueError(f"size and cell_size must have as many axes, got {tuple(size)} and {tuple(cell_size)}.")
    lengths = {f"size[{axis}]": length for axis, length in enumerate(size)}
    check_whole(1, batch=batch, num_sets=num_sets, **lengths)
    check_whole(1, **{f"cell_size[{axis}]": width for axis, width in enumerate(cell_size)})
    cells = [-(-length // width) for length, width in zip(size, cell_size, strict=True)]
    number = math.prod(cells)
    ranks = [torch.randperm(number, device=device, generator=generator).view(cells) for _ in range(batch)]
    return cell_masks(torch.stack(ranks), list(size), list(cell_size), num_sets)
