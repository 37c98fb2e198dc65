"""Blends and labels of synthetic anomalies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter

from ssmctb_monai.transforms import BinaryLabel, ContinuousLabel, FactorLabel, LogisticLabel, SoftEdge


def test_soft_edge_by_hand():
    blend = SoftEdge(width=0.5)
    blend.drawn = 0.5
    image = torch.tensor([[[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]])
    source = torch.tensor([[[1.0, 1.0, 1.0, 0.0, 1.0, 1.0]]])
    level = torch.tensor([[-0.3, -0.125, 0.0, 0.125, 0.25, 2.0]])
    inside = torch.tensor([[True, True, True, True, True, False]])
    expected = torch.tensor([[[0.5, 0.625, 0.75, 0.125, 1.0, 0.5]]])  # weights 0, 1/4, 1/2, 3/4, 1 and 0 outside
    torch.testing.assert_close(blend(image, source, level, inside), expected)


def test_width_is_drawn_up_to_the_largest():
    blend = SoftEdge(width=2.0).set_random_state(0)
    widths = []
    for _ in range(50):
        blend.randomize()
        widths.append(blend.drawn)
    assert 0 < min(widths) < 0.2
    assert 1.8 < max(widths) <= 2.0
    with pytest.raises(ValueError, match="width"):
        SoftEdge(width=-1)


def test_labels_by_hand():
    clean = torch.tensor([[[0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5]]])
    corrupted = torch.tensor([[[0.5, 0.7, 1.0]], [[0.5, 0.1, 0.6]]])
    mask = torch.tensor([[False, True, True]])
    torch.testing.assert_close(BinaryLabel()(clean, corrupted, mask), torch.tensor([[0.0, 1.0, 1.0]]))
    torch.testing.assert_close(ContinuousLabel()(clean, corrupted, mask), torch.tensor([[0.0, 0.3, 0.3]]))
    torch.testing.assert_close(ContinuousLabel(full=0.5)(clean, corrupted, mask), torch.tensor([[0.0, 0.6, 0.6]]))
    torch.testing.assert_close(ContinuousLabel(full=0.1)(clean, corrupted, mask), torch.tensor([[0.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match="full"):
        ContinuousLabel(full=0)


def test_factor_is_the_share_of_the_source():
    blend = SoftEdge(width=0.0, factor=(0.2, 0.8)).set_random_state(0)
    image, source, level = torch.zeros(1, 1, 4), torch.ones(1, 1, 4), torch.tensor([[-1.0, 1.0, 1.0, 1.0]])
    inside = torch.tensor([[True, True, True, False]])
    factors = []
    for _ in range(40):
        blend.randomize()
        torch.testing.assert_close(
            blend(image, source, level, inside), blend.drawn_factor * torch.tensor([[[0.0, 1.0, 1.0, 0.0]]])
        )
        factors.append(blend.drawn_factor)
    assert 0.2 <= min(factors) < 0.25
    assert 0.75 < max(factors) <= 0.8
    shares = torch.tensor([[0.0, 0.3, 0.7]])
    assert torch.equal(FactorLabel()(image, image, shares), shares)


@pytest.mark.parametrize(("shape", "window"), [((20, 16), 5), ((9, 8, 10), 3)])
def test_logistic_label_against_scipy(shape, window):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, *shape, generator=generator)
    change = 0.3 * torch.rand(2, *shape, generator=generator)
    changed = torch.zeros(shape, dtype=torch.bool)
    changed[(slice(2, 7),) * len(shape)] = True
    changed[(0,) * len(shape)] = changed[(-1,) * len(shape)] = True  # single voxels, which the medians take away
    corrupted = clean + change * changed
    difference = (corrupted - clean).abs().mean(0).numpy()
    smooth = median_filter(difference, window, mode="nearest")
    kept = median_filter((difference > 0.02).astype(float), window, mode="nearest") > 0
    kept &= difference > 0
    expected = np.where(kept, 1 / (1 + np.exp(-30 * (smooth - 0.1))), 0)
    label = LogisticLabel(slope=30, centre=0.1, tolerance=0.02)(clean, corrupted, changed.float())
    np.testing.assert_allclose(label, expected, atol=1e-5)
    assert 0 < kept.sum() < changed.sum() + 10
    other = LogisticLabel(slope=30, centre=0.1, tolerance=0.02, window=1)(clean, corrupted, changed.float())
    assert torch.equal(other > 0, torch.from_numpy(difference > 0.02))
    assert not LogisticLabel()(clean, clean, changed.float()).any()


@pytest.mark.parametrize("label", [ContinuousLabel(), LogisticLabel(window=1)])
def test_modalities_that_an_image_lacks_do_not_count(label):
    clean = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    corrupted = clean + 0.1
    lacking = [torch.cat([x, torch.zeros(2, 6, 6)]) for x in (clean, corrupted)]
    torch.testing.assert_close(label(*lacking, torch.ones(6, 6)), label(clean, corrupted, torch.ones(6, 6)))
    black = torch.zeros(1, 6, 6)  # lacks nothing
    assert (label(black, black + 0.1, torch.ones(6, 6)) > 0).all()


@pytest.mark.parametrize("arguments", [{"slope": 0}, {"tolerance": -1}, {"window": 2}, {"window": 0}], ids=str)
def test_ill_logistic_label(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        LogisticLabel(**arguments)
