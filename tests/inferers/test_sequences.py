"""A 2D network over slices with their context."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssmctb_monai.inferers import PlanesInferer, SequenceInferer, window_inferer

SHAPE = (40, 36, 33)


def network(x):
    """Tells slice and context, their channels and their order apart."""
    weights = torch.tensor([5.0, -3.0, 2.0, 0.7, -0.2, 1.1])[: x.shape[1]]
    return (x * weights.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)


@pytest.fixture
def image():
    return torch.rand(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0)) + 0.1


def by_hand(image, context, axis):
    """Slice after slice, as `SequenceInferer` says."""
    slices = image.unbind(axis + 2)
    last, scores = len(slices) - 1, []
    for index, own in enumerate(slices):
        runs = [[index + direction * offset for offset in context] for direction in (1, -1)]
        inside = [run for run in runs if min(run) >= 0 and max(run) <= last]
        cut = [[min(max(place, 0), last) for place in run] for run in runs]
        maps = [
            network(torch.cat([own, *(slices[place] for place in run)], dim=1))
            for run in inside or [run for run in cut if set(run) != {index}]
        ]
        scores.append(sum(maps) / len(maps))
    return torch.stack(scores, dim=axis + 2)


@pytest.mark.parametrize(
    ("context", "plane"),
    [((-1,), "axial"), ((-3, -2), "sagittal"), ((-16, 17), "coronal"), ((-9, -32), "axial"), ((-40, -20), "axial")],
)
def test_every_slice_with_its_context_in_both_directions(image, context, plane):
    axis = ("sagittal", "coronal", "axial").index(plane)
    found = SequenceInferer((40, 40), context, plane, sw_batch_size=7)(image, network)
    torch.testing.assert_close(found, by_hand(image, context, axis))


def test_mean_of_planes(image):
    found = SequenceInferer((40, 40), (-2,), ("axial", "coronal"), sw_batch_size=7)(image, network)
    torch.testing.assert_close(found, (by_hand(image, (-2,), 2) + by_hand(image, (-2,), 1)) / 2)


def test_nothing_is_computed_where_the_context_lies_outside(image):
    seen = []
    SequenceInferer((40, 40), (-4,), sw_batch_size=5)(image, lambda x: seen.append(len(x)) or network(x))
    assert sum(seen) == 2 * (33 - 4)


@pytest.mark.parametrize(("context", "plane"), [((-16,), "sagittal"), ((-3, 2), "coronal"), ((-9, -32), "axial")])
def test_padding_is_no_context(image, context, plane):
    """Each volume of a batch has its own."""
    sizes = [torch.tensor(SHAPE), torch.tensor(SHAPE) - 3]
    volumes = [image[..., : size[0], : size[1], : size[2]] for size in sizes]
    pads = [(7, 10, 2, 4, 9, 1), (4, 16, 6, 3, 3, 10)]
    batch = torch.cat([F.pad(volume, pad) for volume, pad in zip(volumes, pads, strict=True)])
    found = SequenceInferer((60, 60), context, plane, sw_batch_size=7)(batch, network)
    for one, volume, pad in zip(found.split(1), volumes, pads, strict=True):
        expected = F.pad(by_hand(volume, context, ("sagittal", "coronal", "axial").index(plane)), pad)
        torch.testing.assert_close(one, expected)


def test_windows_and_inferer_by_its_settings(image):
    given = {"sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
    found = window_inferer(2, (24, 24, 1), "axial", (-1,), sw_batch_size=3)(image, network)
    torch.testing.assert_close(found, SequenceInferer((24, 24), (-1,), "axial", **given)(image, network))
    torch.testing.assert_close(found, by_hand(image, (-1,), 2))  # the network looks at each voxel by itself
    assert type(window_inferer(2, (24, 24, 1))) is PlanesInferer


def test_without_context_as_the_planes(image):
    torch.testing.assert_close(SequenceInferer((40, 40), ())(image, network), PlanesInferer((40, 40))(image, network))


def test_a_slice_alone_is_not_its_own_context(image):
    with pytest.raises(ValueError, match=r"No slice has another one at context \[-1\], of 1 in all"):
        SequenceInferer((40, 40), (-1,))(image[..., :1], network)
    assert SequenceInferer((40, 40), ())(image[..., :1], network).shape == (1, 1, 40, 36, 1)


def test_whole_numbers_of_numpy():
    context = SequenceInferer((8, 8), [np.int64(-2), np.int32(1)]).context
    assert context == (-2, 1)
    assert {type(offset) for offset in context} == {int}


@pytest.mark.parametrize("context", [(True,), (0, -1), (-1, -1), (1.0,), "12", 1, None, [[1]]])
def test_ill_context(context):
    with pytest.raises(ValueError, match="context must be whole numbers"):
        SequenceInferer((8, 8), context)
