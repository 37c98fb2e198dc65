"""Exponential moving average of weights, against a loop by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from ssmctb_monai.handlers import WeightAverage, weight_average
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).train()


def disturb(network, generator):
    """What a training step does: other weights, other batch statistics, one batch more."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    network(torch.randn(4, 2, 8, 8, generator=generator) * 3 + 1)


def run(average, network, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    engine = Engine(lambda engine, batch: disturb(network, generator))
    average.attach(engine)
    engine.run([0] * steps)


def by_hand(network, decay, steps, seed=0):
    """Averages after each step; the first step sees the network that it started with, as in the tests below."""
    generator = torch.Generator().manual_seed(seed)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(1, steps):
        disturb(network, generator)
        used = min(decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                expected[name] = used * expected[name] + (1 - used) * value
    return expected


@pytest.mark.parametrize("decay", [0.9, 0.5, 0.15])
@pytest.mark.parametrize("steps", [2, 30])
def test_against_a_loop_by_hand(decay, steps):
    """0.15 is below the warm-up from its first step on (2/11), 0.5 from step 8 on, 0.9 is in it for all 30 steps."""
    network = make_network()
    average = WeightAverage(network, decay)
    average(Engine(lambda engine, batch: None))  # a step without a change
    run(average, network, steps - 1)
    expected = by_hand(make_network(), decay, steps)
    for name, value in average.network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert (average.network[1].running_mean - make_network()[1].running_mean).abs().min() > 0.01


def test_integer_buffers_stay_integer_and_in_range():
    network = make_network()
    average = WeightAverage(network, 0.9)
    for _ in range(3):
        run(average, network, 4)
        batches = average.network[1].num_batches_tracked
        assert batches.dtype == torch.int64
        assert 0 < batches <= network[1].num_batches_tracked
    make_network().load_state_dict(average.network.state_dict())


def test_decay_0_follows_the_network():
    network = make_network()
    average = WeightAverage(network, 0)
    for _ in range(3):
        run(average, network, 2)
        for name, value in average.network.state_dict().items():
            torch.testing.assert_close(value, network.state_dict()[name], rtol=0, atol=0)


def test_network_in_training_is_left_alone():
    network, other = make_network(), make_network()
    run(WeightAverage(network, 0.9), network, 5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        disturb(other, generator)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)
    assert network.training


def test_averaged_network_is_in_evaluation_mode():
    network = make_network()
    average = WeightAverage(network)
    assert not any(module.training for module in average.network.modules())
    run(average, network, 3)
    assert not any(module.training for module in average.network.modules())
    assert all(module.training for module in network.modules())
    assert not any(parameter is other for parameter in average.network.parameters() for other in network.parameters())


@pytest.mark.parametrize("steps_before", [1, 4])
def test_state_dict_resumes_with_the_step_count(steps_before):
    network = make_network()
    unbroken = WeightAverage(network, 0.9)
    run(unbroken, network, steps_before, seed=1)
    weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(unbroken.averaged.state_dict())
    run(unbroken, network, 3, seed=2)

    other = make_network()
    resumed = WeightAverage(other, 0.9)
    other.load_state_dict(weights)
    resumed.averaged.load_state_dict(state)
    run(resumed, other, 3, seed=2)
    for name, value in unbroken.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("block", [SSMCTB, SSPCAB])
def test_network_with_a_block_after_a_training_step(block):
    """The loss that a block keeps is in the graph, which cannot be copied."""
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), block(2, 8)).train()
    (network(torch.rand(2, 1, 8, 8)).mean() + network[1].reconstruction_loss).backward()
    average = WeightAverage(network, 0.5)
    network(torch.rand(2, 1, 8, 8))
    average(Engine(lambda engine, batch: None))
    assert average.network(torch.rand(2, 1, 8, 8)).shape == (2, 8, 8, 8)
    assert average.network[1].reconstruction_loss is None
    assert network[1].reconstruction_loss.requires_grad  # the network in training keeps its loss


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan")])
def test_ill_decay(decay):
    with pytest.raises(ValueError, match="decay"):
        WeightAverage(make_network(), decay)


def test_processes_agree_on_the_statistics_of_the_first(monkeypatch):
    """All of them, when an epoch ends; one process needs nobody, and the counter of steps is everybody's own."""
    network = make_network()
    average = WeightAverage(network, 0.9)
    broadcast = []

    def of_the_first(buffer, src):
        assert src == 0
        broadcast.append(buffer.fill_(3))

    monkeypatch.setattr(weight_average.distributed, "broadcast", of_the_first)
    run(average, network, 2)
    assert broadcast == []
    monkeypatch.setattr(weight_average.idist, "get_world_size", lambda: 2)
    run(average, network, 2)
    assert {id(buffer) for buffer in broadcast} == {id(buffer) for buffer in average.network.buffers()}
    assert all((buffer == 3).all() for buffer in average.network[1].buffers())
    assert all((buffer != 3).all() for buffer in network[1].buffers() if buffer.is_floating_point())
