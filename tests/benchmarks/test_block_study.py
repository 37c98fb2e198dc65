"""Networks and loss of the block study: each does what its name says."""

import pytest
import torch

from benchmarks import block_study
from benchmarks.accuracy.rows import BLOCK_STUDY
from ssmctb_monai.networks.blocks import SSMCTB, named_blocks

TINY = {"spatial_dims": 2, "in_channels": 2, "reconstructive_width": 4, "discriminative_width": 4}
NETWORKS = sorted(
    {
        overrides["network_def"]["_target_"].rpartition(".")[2]
        for _, overrides in BLOCK_STUDY.values()
        if "network_def" in overrides
    }
)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_trained(name):
    network = getattr(block_study, name)(**TINY, block_in="reconstructive")
    loss = block_study.StudiedLoss(lambda output, target: sum(part.square().mean() for part in output), network)
    x = torch.rand(2, 2, 64, 64)
    loss(network(x), x).backward()
    assert {*loss.parts} == {"task", "block", "rms"}
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.eval()(x).shape == (2, 1, 64, 64)


def test_places():
    def blocks(name):
        return list(named_blocks(getattr(block_study, name)(**TINY, block_in="reconstructive")))

    assert blocks("DetachedDRAEM") == ["reconstructive.1.stages.3.1"]
    assert blocks("AllScalesDRAEM") == [f"reconstructive.1.stages.{index}.1" for index in range(4)]
    assert blocks("InputFeaturesDRAEM") == blocks("ErrorInputDRAEM") == ["block"]


def test_a_detached_target_gets_no_gradient():
    target, output = torch.rand(1, 4, 8, 8, requires_grad=True), torch.rand(1, 4, 8, 8, requires_grad=True)
    block_study.DetachedTarget(2, 4).error(output, target).sum().backward()
    assert target.grad is None
    assert output.grad.abs().sum() > 0


def test_a_relative_loss_is_that_of_any_scale():
    output, target = torch.rand(2, 1, 4, 8, 8).double()
    target[:, 1] *= 100  # channels count alike
    output[:, 1] *= 100
    block = block_study.NormalisedTarget(2, 4)
    torch.testing.assert_close(
        block.error(output, target), block.error(0.01 * output, 0.01 * target), rtol=1e-3, atol=0
    )
    rms = target.square().mean(dim=(0, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(
        block.error(output, target), SSMCTB.error(block, output / rms, target / rms), rtol=1e-5, atol=1e-7
    )


def test_error_of_the_block_reaches_the_discriminative_sub_network():
    network = block_study.ErrorInputDRAEM(**TINY, block_in="reconstructive").eval()
    x = torch.rand(1, 2, 64, 64)
    before = network(x)
    with torch.no_grad():
        for parameter in network.block.parameters():
            parameter.add_(1.0)
    assert not torch.equal(network(x), before)


def test_weight_rises():
    network = block_study.DetachedDRAEM(**TINY, block_in="reconstructive")
    loss = block_study.StudiedLoss(lambda output, target: torch.zeros(()), network, weight=0.5, rising_steps=4)
    x = torch.rand(2, 2, 64, 64)
    totals = []
    for _ in range(6):
        network(x)
        totals.append(float(loss(None, x).detach() / loss.parts["block"]))
    assert totals == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5], rel=1e-5)


def test_table(tmp_path):
    log = tmp_path / "row" / "fold0_seed1" / "training.log"
    log.parent.mkdir(parents=True)
    line = "12:00:00 INFO Epoch {0}/10 | loss 0.3 (l2 0.1 + block {1} + rms {2}) | 5.5 s | 0:02:38 left\n"
    log.write_text("".join(line.format(epoch, 0.5 / epoch, 1 + epoch / 10) for epoch in range(1, 11)))
    lines = block_study.table(tmp_path, ["row", "missing"]).splitlines()[2:]
    assert lines == [
        "| row | fold0_seed1 | 10% | 0.5000 | 1.100 | 0.83 |",
        "| | | 50% | 0.1000 | 1.500 | 0.09 |",
        "| | | 100% | 0.0500 | 2.000 | 0.03 |",
    ]
