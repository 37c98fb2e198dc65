"""Masks of cells: disjoint, complete, and those of the published release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssmctb_monai.networks.cell_masks import cell_masks, rand_cell_masks

GOLDEN = np.load(Path(__file__).parents[1] / "data/golden/ssm_masks.npz")


@pytest.mark.parametrize("cell", [2, 4, 8])
def test_masks_of_the_release(cell):
    """Of 128 x 128 pixels, from NumPy's permutation by seed 0, which gives each set its cells one after the other."""
    order = torch.from_numpy(np.random.RandomState(0).permutation((128 // cell) ** 2))
    ranks = order.argsort().view(1, 128 // cell, 128 // cell)
    masks = cell_masks(ranks, [128, 128], [cell, cell], 3)
    np.testing.assert_array_equal(np.packbits(masks[0].numpy().reshape(3, -1), axis=1), GOLDEN[f"k{cell}"])


@pytest.mark.parametrize(
    ("size", "cell", "sets", "hidden"),
    [
        ((128, 128), (2, 2), 3, [1366, 1366, 1364]),
        ((12, 10), (4, 5), 2, [3, 3]),
        ((24, 12, 8), (8, 6, 2), 3, [8, 8, 8]),  # anisotropic
        ((8, 8), (4, 4), 3, [2, 2, 0]),  # fewer cells than are needed
    ],
)
def test_sets_are_disjoint_and_hide_everything(size, cell, sets, hidden):
    masks = rand_cell_masks(5, size, cell, sets, generator=torch.Generator().manual_seed(0))
    assert masks.shape == (5, sets, *size)
    assert masks.dtype == torch.bool
    assert torch.equal((~masks).sum(dim=1), torch.ones(5, *size, dtype=torch.long))
    counts = (~masks).flatten(2).sum(dim=2) // np.prod(cell)
    assert counts.tolist() == [hidden] * 5
    blocks = masks
    for axis, width in enumerate(cell):
        blocks = blocks.unfold(axis + 2, width, width)
    flat = blocks.flatten(-len(cell)).float()
    assert torch.equal(flat.amin(-1), flat.amax(-1))  # a cell as a whole


def test_each_image_has_masks_of_its_own_and_every_cell_may_be_in_any_set():
    masks = rand_cell_masks(300, (6, 6), (2, 2), 3, generator=torch.Generator().manual_seed(0))
    assert len(masks.flatten(1).unique(dim=0)) > 200
    shares = (~masks).float().mean(dim=0)
    assert (shares - 1 / 3).abs().max() < 0.1


def test_cells_are_cut_at_the_high_border():
    whole = cell_masks(torch.arange(6).view(1, 2, 3), [8, 12], [4, 4], 3)
    assert torch.equal(cell_masks(torch.arange(6).view(1, 2, 3), [7, 9], [4, 4], 3), whole[..., :7, :9])
    assert rand_cell_masks(2, (7, 9, 3), (4, 4, 8), 2).shape == (2, 2, 7, 9, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, (8, 8), (2, 2, 2), 3), "as many axes"),
        ((1, (8, 8), (2, 0), 3), r"cell_size\[1\] must be at least 1, got 0"),
        ((1, (8, 8), (2, 2), 0), "num_sets must be at least 1"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        rand_cell_masks(*arguments)
