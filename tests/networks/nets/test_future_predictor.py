"""Prediction of a slice from its context: the published shape, and what predicts without learning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmctb_monai.networks.blocks import SSMCTB
from ssmctb_monai.networks.nets import FuturePredictor


def test_published_shape():
    network = FuturePredictor(2, 5, channels=(64, 128, 256, 512), block=None).network
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    found = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in layers]
    down = [(4, 64, 3), (64, 64, 3), (64, 128, 3), (128, 128, 3), (128, 256, 3), (256, 256, 3), (256, 512, 3)]
    up = [(512, 256, 2), (256, 128, 2), (128, 64, 2)]
    stages = [(512, 256, 3), (256, 256, 3), (256, 128, 3), (128, 128, 3), (128, 64, 3), (64, 64, 3)]
    assert found == [*down, (512, 512, 3), *up, *stages, (64, 1, 3)]
    assert not any("Norm" in type(layer).__name__ for layer in network.modules())
    assert [type(layer) for layer in network.children()][-1] is nn.Tanh


def test_block_takes_the_place_of_the_finest_second_convolution():
    network = FuturePredictor(2, 3, channels=(4, 8), block="ssmctb")
    (name,) = (name for name, layer in network.named_modules() if isinstance(layer, SSMCTB))
    assert name == "network.1.stages.0.1"


def test_map_is_the_error_of_the_prediction_from_the_context_alone():
    torch.manual_seed(0)
    network = FuturePredictor(2, 6, out_channels=2, channels=(4, 8), block=None).eval()
    run, other = torch.rand(2, 2, 6, 20, 18)
    other[:, 2:] = run[:, 2:]
    assert torch.equal(network.reconstruct(run), network.reconstruct(other))
    expected = (network.reconstruct(run).clamp(0, 1) - run[:, :2]).abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(network(run), expected)
    assert network.train()(run).shape == (2, 2, 20, 18)


def test_mean_of_the_context():
    network = FuturePredictor(2, 6, out_channels=2, prediction="mean")
    run = torch.rand(3, 6, 9, 7)
    torch.testing.assert_close(network(run), (run[:, 2:4] + run[:, 4:]) / 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for _ in range(200):  # the slice is that of the second one
        optimizer.zero_grad()
        run = torch.rand(8, 6, 4, 4)
        (network(run) - run[:, 4:]).square().mean().backward()
        optimizer.step()
    assert network.network.logits.softmax(0)[1] > 0.9


def test_copy_of_one_slice():
    run = torch.rand(1, 2, 8, 8)
    network = FuturePredictor(2, 2, prediction="mean").eval()
    assert torch.equal(network.reconstruct(run), run[:, 1:])
    torch.testing.assert_close(network(run), (run[:, :1] - run[:, 1:]).abs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 1}, "in_channels must be those of a slice and of one or more context slices"),
        ({"in_channels": 5, "out_channels": 2}, "multiples of out_channels 2, got 5"),
        ({"prediction": "median"}, "prediction must be one of unet, mean"),
        ({"score": "block"}, "score must be one of l1, l2, ssim, msgms"),
        ({"channels": (8,)}, "widths must be at least two"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FuturePredictor(**{"spatial_dims": 2, "in_channels": 3, **arguments})
