"""Steps of an image towards what is reconstructed well, by hand on linear networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmctb_monai.networks.nets import FuturePredictor, MemoryAutoencoder, ReconstructionDetector

STEP = 0.01


def scaling(factor: float) -> nn.Module:
    """Reconstructs every voxel as a multiple of itself, whatever its neighbours are."""
    layer = nn.Conv2d(1, 1, kernel_size=1, bias=False)
    nn.init.constant_(layer.weight, factor)
    return layer


@pytest.fixture
def detector():
    return ReconstructionDetector(2, 1, scaling(0.5), perturbation=STEP).eval()


def test_step_of_a_linear_network(detector):
    """The squared error (x / 2)² falls with x, however dark a voxel is; at 0 it has no slope."""
    image = torch.tensor([[0.8, 0.2, 0.004, 0.0]])[None, None]
    moved = torch.tensor([[0.79, 0.19, 0.0, 0.0]])[None, None]
    torch.testing.assert_close(detector(image), moved / 2)
    torch.testing.assert_close(detector.reconstruct(image), image / 2)


def test_a_missing_modality_stays_missing():
    """Its reconstruction is 0.1; the other one's of 0.79 is 0.495, whose error alone counts."""
    layer = nn.Conv2d(2, 2, kernel_size=1)
    nn.init.constant_(layer.bias, 0.1)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2).view(2, 2, 1, 1) / 2)
    image = torch.tensor([0.8, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    scores = ReconstructionDetector(2, 2, layer, perturbation=STEP).eval()(image)
    torch.testing.assert_close(scores, torch.full((1, 1, 8, 8), 0.295))


def test_step_of_a_run():
    """The slice 0.6 moves towards its prediction, the mean of 0.2 and 0.4, and these towards 0.6."""
    run = torch.tensor([0.6, 0.2, 0.4]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    still, stepping = (
        FuturePredictor(2, 3, prediction="mean", score="l1", perturbation=step).eval() for step in (0.0, STEP)
    )
    torch.testing.assert_close(still(run), torch.full((1, 1, 8, 8), 0.3))
    torch.testing.assert_close(stepping(run), torch.full((1, 1, 8, 8), 0.3 - 2 * STEP))
    torch.testing.assert_close(stepping(1 - run), torch.full((1, 1, 8, 8), 0.3 - 2 * STEP))
    assert torch.equal(stepping.train()(run), still.train()(run))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_within_any_mode_and_without_a_trace(context):
    torch.manual_seed(0)
    network = MemoryAutoencoder(2, 3, channels=(4, 8), perturbation=STEP, update_below=1.0).eval()
    run = torch.rand(2, 3, 12, 10)
    expected = network(run).detach()
    with context():
        run = run.clone()
        network.begin_volume()
        scores = network(run)
        torch.testing.assert_close(scores, expected)
        assert scores.requires_grad == (context is torch.enable_grad)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not run.requires_grad


def test_no_export(detector):
    image = torch.rand(1, 1, 8, 8)
    for export in (
        lambda: torch.jit.script(detector),
        lambda: torch.jit.script(nn.Sequential(detector)),
        lambda: torch.jit.trace(detector, image),
        lambda: torch.export.export(detector, (image,)),
    ):
        with pytest.raises(Exception, match="cannot be exported: set perturbation to 0"):
            export()


def test_ill_step():
    with pytest.raises(ValueError, match=r"perturbation must be in \[0, 1\], got -1"):
        FuturePredictor(2, 3, perturbation=-1)
