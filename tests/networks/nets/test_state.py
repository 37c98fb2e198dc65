"""Reconstruction of a run of slices that attend to one another."""

from __future__ import annotations

import pytest
import torch

from ssmctb_monai.networks.blocks import SSMCTB, SliceAttention
from ssmctb_monai.networks.nets import STATE


@pytest.fixture
def network():
    torch.manual_seed(0)
    return STATE(2, 6, out_channels=2, channels=(4, 8), block=None).eval()


def test_run_is_reconstructed_and_its_slice_scored(network):
    run = torch.rand(2, 6, 12, 10)
    whole = network.training_output(run)
    assert whole.shape == run.shape
    assert torch.equal(network.reconstruct(run), whole[:, :2])
    expected = (whole[:, :2].clamp(0, 1) - run[:, :2]).abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(network(run), expected)
    assert network.train()(run).shape == run.shape


def test_slices_share_all_but_attention_and_their_place(network):
    run = torch.rand(1, 6, 8, 8)
    other = run.clone()
    other[:, 4:] = 0
    assert not torch.equal(network.reconstruct(run), network.reconstruct(other))
    swapped = run[:, [2, 3, 0, 1, 4, 5]]
    assert not torch.allclose(network.training_output(swapped)[:, 2:4], network.reconstruct(run))
    with torch.no_grad():
        network.places.zero_()
    torch.testing.assert_close(network.training_output(swapped)[:, 2:4], network.reconstruct(run))


def test_published_shape_and_block():
    network = STATE(2, 7, channels=(32, 64, 128), num_layers=5)
    assert network.places.shape == (7, 128, 1, 1)
    assert sum(isinstance(layer, SliceAttention) for layer in network.modules()) == 5
    (name,) = (name for name, layer in network.named_modules() if isinstance(layer, SSMCTB))
    assert name == "decoder.stages.1.1"
    assert not network.decoder.skip_connections


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 1}, "in_channels must be those of a slice and of one or more context slices"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"num_heads": 3}, "channels must be a multiple of num_heads 3"),
        ({"score": "block"}, "score must be one of l1, l2, ssim, msgms"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        STATE(**{"spatial_dims": 2, "in_channels": 3, **arguments})
