"""Random disjoint cell masks, against the usual construction in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import Tensor

from benchmarks.measure import Row, compare, device, goal
from ssmctb_monai.networks.cell_masks import rand_cell_masks

CELL_SIZES = (2, 4, 8)  # the published ones
NUM_SETS = 3
BATCH = 16


def in_numpy(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Masks of one sample as they are mostly made: a permutation of the cells, and a slice set to False for each."""
    masks = []
    for width in CELL_SIZES:
        grid = [size // width for size in shape]
        for cells in np.array_split(rng.permutation(np.prod(grid)), NUM_SETS):
            mask = np.ones(shape, dtype=bool)
            for place in zip(*np.unravel_index(cells, grid), strict=True):
                mask[tuple(slice(index * width, (index + 1) * width) for index in place)] = False
            masks.append(mask)
    return np.stack(masks)


def in_torch(shape: tuple[int, ...]) -> list[Tensor]:
    return [rand_cell_masks(BATCH, shape, [width] * len(shape), NUM_SETS, device()) for width in CELL_SIZES]


def rows() -> Iterator[Row]:
    for shape in ((256, 256), (96, 96, 96)):
        rng = np.random.default_rng(0)
        seconds, share = compare(partial(in_torch, shape), partial(in_numpy, shape, rng))
        yield Row(
            f"masks of 3 sets of cells of 2, 4 and 8 voxels, {shape[0]}^{len(shape)}, a sample of {BATCH}",
            "in NumPy, sample by sample",
            seconds / BATCH,
            BATCH / share,
            goal("≥ 20", "≥ 20"),
        )
