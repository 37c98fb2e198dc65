"""The autoencoder with gradient ascent: its classifier, its block, and what the ascent changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmctb_monai.losses import AscentLoss
from ssmctb_monai.networks.blocks import SSMCTB, named_blocks
from ssmctb_monai.networks.nets import AscentAutoencoder


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_block_in_place_of_the_decoders_penultimate_convolution(spatial_dims):
    network = AscentAutoencoder(spatial_dims, widths=(8, 4))
    ((name, block),) = named_blocks(network).items()
    assert isinstance(block, SSMCTB)
    assert name == "autoencoder.1.stages.0.1"
    plain = AscentAutoencoder(spatial_dims, widths=(8, 4), block="none")
    assert plain.autoencoder[1].stages[0][1].conv.weight.shape[:2] == (8, 8)


def test_the_map_is_what_the_classifier_says_of_the_error():
    network = AscentAutoencoder(2, in_channels=2, widths=(4, 4)).eval()
    x = torch.rand(1, 2, 9, 10)
    error = (network.reconstruct(x) - x).abs()
    torch.testing.assert_close(network(x), network.classifier(error).sigmoid())


def test_probabilities_keep_their_digits_in_bfloat16():
    network = AscentAutoencoder(2, widths=(4, 4)).eval()
    nn.init.constant_(network.classifier[-1].bias, 8.0)  # in bfloat16 the probability would be 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = network(torch.rand(1, 1, 16, 16))
    assert scores.dtype == torch.float32
    assert scores.max() < 1


def test_the_classifier_does_not_change_the_autoencoder():
    network = AscentAutoencoder(2, widths=(4, 4), block="none").train()
    _, logits = network(torch.rand(2, 1, 16, 16))
    logits.sum().backward()
    assert all(parameter.grad is None for parameter in network.autoencoder.parameters())
    assert all(parameter.grad is not None for parameter in network.classifier.parameters())


def trained(weight):
    """Errors and scores on smooth images in which a square may be brighter, after 120 steps on others."""
    torch.manual_seed(0)
    network = AscentAutoencoder(2, widths=(8, 8), block="none").train()
    loss, optimizer = AscentLoss(weight), torch.optim.Adam(network.parameters(), lr=5e-3)
    grid = torch.linspace(0, 3, 24)
    for _ in range(120):
        phases = torch.rand(2, 4, 1)
        rows, columns = 0.1 * torch.sin(grid + phases)
        mask = torch.zeros(4, 1, 24, 24)
        row, column = torch.randint(0, 17, (2,)).tolist()
        mask[:3, :, row : row + 7, column : column + 7] = 1
        image = 0.4 + (rows[:, :, None] + columns[:, None])[:, None] + 0.25 * mask
        optimizer.zero_grad()
        loss(network(image), (image, mask)).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        return (network.reconstruct(image) - image).abs(), network(image), mask > 0


def test_the_ascent_keeps_anomalies_from_being_reconstructed():
    """Their error grows far above that of the rest, but not beyond 1, and the classifier finds them by it."""
    before, _, mask = trained(weight=0.0)
    error, scores, _ = trained(weight=0.2)
    assert error[mask].mean() > 20 * error[~mask].mean()
    assert error[mask].mean() > 3 * before[mask].mean()
    assert scores[mask].mean() > 0.9
    assert scores[~mask].mean() < 0.1
    assert trained(weight=10.0)[0].max() < 1
