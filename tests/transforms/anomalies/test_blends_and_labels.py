"""Blends and labels of synthetic anomalies."""

from __future__ import annotations

import pytest
import torch

from ssmctb_monai.transforms import BinaryLabel, ContinuousLabel, SoftEdge


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
