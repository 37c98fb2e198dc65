"""Inference on windows with foreground only."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from torch import nn

from ssmctb_monai.inferers import ForegroundInferer

SLIDING = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=3, overlap=0.5, mode="gaussian")
SLICES = SliceInferer(roi_size=(8, 8), spatial_dim=2, sw_batch_size=3, overlap=0.25)


class Offset(nn.Module):
    """A network of two output channels that answers the background with 1 and 2, and counts its windows."""

    def __init__(self):
        super().__init__()
        self.windows = []

    def forward(self, x):
        self.windows.append(x)
        return torch.cat([x[:, :1] + 1, 3 * x[:, :1] + 2], dim=1)


def image(*filled):
    """Two channels of background, but for boxes in the second and 0.5 beside the first voxel of each in the first."""
    volume = torch.zeros(1, 2, 16, 20, 12)
    for box in filled:
        volume[(0, 1, *box)] = torch.rand(()) + 0.1
        volume[0, 0, box[0].start, box[1].start, box[2].start] = 0.5
    return volume


@pytest.mark.parametrize("inferer", [SLIDING, SLICES], ids=["windows", "slices"])
def test_everything_is_as_ever_where_every_window_has_foreground(inferer):
    volume = image((slice(0, 16), slice(0, 20), slice(0, 12)))
    torch.testing.assert_close(ForegroundInferer(inferer)(volume, Offset()), inferer(volume, Offset()), rtol=0, atol=0)


def test_windows_without_foreground_are_left_out_and_get_zero():
    volume = image((slice(0, 3), slice(0, 3), slice(0, 3)))
    network, plain = Offset(), Offset()
    output = ForegroundInferer(SLIDING)(volume, network)
    expected = SLIDING(volume, plain)
    assert sum(len(windows) for windows in network.windows) == 1
    assert sum(len(windows) for windows in plain.windows) == 3 * 4 * 2
    torch.testing.assert_close(output[..., :4, :4, :4], expected[..., :4, :4, :4], rtol=0, atol=0)
    assert (output[..., 8:, :, :] == 0).all()  # no window with foreground reaches here
    assert output.shape == expected.shape


def test_slices_without_foreground_are_left_out():
    volume = image((slice(2, 5), slice(3, 6), slice(4, 6)))
    network = Offset()
    output = ForegroundInferer(SLICES)(volume, network)
    expected = SLICES(volume, Offset())
    background = [window for windows in network.windows for window in windows if not window.any()]
    assert len(background) == 1  # the first, which tells the shape of the output
    kept = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(output[0, :, 3, 4], expected[0, :, 3, 4] * kept)


@pytest.mark.parametrize("inferer", [SLIDING, SLICES], ids=["windows", "slices"])
def test_an_image_of_background_gives_zero(inferer):
    output = ForegroundInferer(inferer)(image(), Offset())
    assert output.shape == (1, 2, 16, 20, 12)
    assert (output == 0).all()


def test_one_channel_of_foreground_is_enough():
    volume = image()
    volume[0, 0, 1, 1, 1] = 1e-6
    network = Offset()
    ForegroundInferer(SLIDING)(volume, network)
    assert sum(len(windows) for windows in network.windows) == 1


def test_every_window_is_answered_at_its_own_place():
    volume = image(*((slice(x, x + 2), slice(x, x + 2), slice(x % 8, x % 8 + 2)) for x in (0, 9, 13)))
    inside = volume.any(dim=1, keepdim=True).expand(-1, 2, -1, -1, -1)
    for size in (1, 2, 4, 7, 100):
        inferer = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=size, overlap=0.5, mode="gaussian")
        output = ForegroundInferer(inferer)(volume, Offset())
        torch.testing.assert_close(output[inside], inferer(volume, Offset())[inside], rtol=0, atol=0)


def test_other_tensors_of_a_case_do_not_reach_the_network():
    volume = image((slice(0, 16), slice(0, 20), slice(0, 12)))
    output = ForegroundInferer(SimpleInferer())(volume, Offset(), volume, brain=volume, scan_brain=volume[..., :3])
    torch.testing.assert_close(output, Offset()(volume), rtol=0, atol=0)
