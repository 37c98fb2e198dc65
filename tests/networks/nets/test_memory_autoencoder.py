"""Prediction through a memory: golden terms, the published shape, items that follow slices at evaluation."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssmctb_monai.inferers import SequenceInferer
from ssmctb_monai.losses import MemoryLoss
from ssmctb_monai.networks.blocks import SSMCTB
from ssmctb_monai.networks.nets import MemoryAutoencoder, memory_autoencoder
from ssmctb_monai.networks.nets.memory_autoencoder import Memory, regular_score
from ssmctb_monai.networks.perturbation import perturbed

GOLDEN = np.load(Path(__file__).parents[2] / "data/golden/video_terms.npz")


def golden(name):
    return torch.from_numpy(GOLDEN[f"mnad/{name}"])


@pytest.fixture
def memory():
    memory = Memory(num_items=6, channels=8)
    memory.items.copy_(golden("items"))
    return memory


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MemoryAutoencoder(2, 3, channels=(4, 8), num_items=4, block=None)


def test_golden_read_and_update(memory):
    read, distance = memory(golden("query"))
    torch.testing.assert_close(read, golden("read"), atol=1e-6, rtol=0)
    assert float(distance.mean()) == pytest.approx(float(golden("compactness_test")), rel=1e-5)
    torch.testing.assert_close(memory.updated(golden("query")).float(), golden("items_updated"), atol=1e-6, rtol=0)
    assert torch.equal(memory.items, golden("items"))


def test_golden_losses(memory):
    queries, nearest, second = memory.nearest(golden("query").requires_grad_())
    torch.testing.assert_close(nearest.float(), golden("items")[golden("nearest_item")], atol=1e-6, rtol=0)
    loss = MemoryLoss(compactness=0.5, separateness=0.25)
    total = loss((torch.zeros(1, 1, 2, 2), queries, nearest, second), torch.full((1, 3, 2, 2), 2.0))
    assert float(loss.parts["compactness"]) == pytest.approx(float(golden("compactness_train")), rel=1e-5)
    assert float(loss.parts["separateness"]) == pytest.approx(float(golden("separateness")), rel=1e-5)
    assert float(loss.parts["intensity"]) == 4
    expected = 4 + 0.5 * float(golden("compactness_train")) + 0.25 * float(golden("separateness"))
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def test_ill_losses():
    with pytest.raises(ValueError, match="separateness must not be negative, got -1"):
        MemoryLoss(separateness=-1)
    rest = [torch.zeros(3, 2)] * 3
    with pytest.raises(ValueError, match=r"The prediction has shape \(1, 1, 2, 2\), the target \(1, 1, 2, 3\)"):
        MemoryLoss()((torch.zeros(1, 1, 2, 2), *rest), torch.zeros(1, 1, 2, 3))


def test_golden_regular_score():
    frame, predicted = ((golden(name).double() + 1) / 2 for name in ("frame", "predicted"))
    assert float(regular_score(predicted, frame)) == pytest.approx(float(golden("regular_score")), rel=1e-6)


def test_published_shape():
    network = MemoryAutoencoder(2, 15, 3, channels=(64, 128, 256, 512), block=None)
    biases = sum(layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    # the published one has biases before its batch norms, too, which change nothing
    assert sum(parameter.numel() for parameter in network.parameters()) + biases == 15_650_819
    assert network.memory.items.shape == (10, 512)


def test_block_takes_the_place_of_the_finest_second_convolution():
    network = MemoryAutoencoder(2, 3, channels=(4, 8), block="ssmctb")
    (name,) = (name for name, layer in network.named_modules() if isinstance(layer, SSMCTB))
    assert name == "decoder.stages.0.1"


def test_training_reads_the_items_before_they_follow(network):
    run, before = torch.rand(2, 3, 16, 16), network.memory.items.clone()
    other = copy.deepcopy(network)
    prediction, queries, nearest, second = network.train()(run)
    features = other.encoder(run[:, 1:])
    similarity = F.normalize(features[-1], dim=1).movedim(1, -1).reshape(-1, 8) @ before.t()
    order = similarity.topk(2, dim=1).indices
    torch.testing.assert_close(nearest.float(), before[order[:, 0]])
    torch.testing.assert_close(second.float(), before[order[:, 1]])
    torch.testing.assert_close(network.memory.items, other.memory.updated(features[-1]).float())
    assert not torch.allclose(network.memory.items, before)
    assert queries.shape == (2 * 8 * 8, 8)
    assert prediction.shape == (2, 1, 16, 16)


def test_map_adds_error_and_distance_relative_to_normal_ones(network):
    run, brain = torch.rand(3, 3, 16, 16), torch.ones(3, 1, 16, 16)
    brain[..., :7] = 0
    network.train()(run)  # batch statistics
    network.eval().fit([(run[:2], brain[:2]), (run[2:], brain[2:])])
    error = (network.reconstruct(run).clamp(0, 1) - run[:, :1]).abs()
    _, distance = network.memory(network.encoder(run[:, 1:])[-1])
    distance = F.interpolate(distance, size=(16, 16), mode="bilinear")
    means = [each[brain > 0].mean() for each in (error, distance)]
    torch.testing.assert_close(network.normal_means, torch.stack(means), rtol=1e-5, atol=0)
    relative = 0.6 * error / means[0] + 0.4 * distance / means[1]
    torch.testing.assert_close(network(run), relative / (1 + relative))
    with pytest.raises(ValueError, match="no voxel of lesion-free brain"):
        network.fit([(run, torch.zeros(3, 1, 16, 16))])


def test_means_are_those_of_perturbed_runs(network):
    """As the map scores them."""
    run = torch.rand(2, 3, 16, 16)
    network.train()(run)  # batch statistics
    network.eval().perturbation = 0.02
    moved = perturbed(network, run, 0.02)
    network.fit([(run, torch.ones(2, 1, 16, 16))])
    error = (network.reconstruct(moved).clamp(0, 1) - moved[:, :1]).abs()
    assert float(network.normal_means[0]) == pytest.approx(float(error.mean().detach()), rel=1e-5)


def test_items_have_norm_1_also_as_averages(network):
    network.eval()
    run = torch.rand(1, 3, 16, 16)
    expected = network(run)
    network.memory.items *= 0.9
    torch.testing.assert_close(network(run), expected)


def test_items_follow_regular_slices_up_to_the_next_volume(network):
    network.eval()
    following = copy.deepcopy(network)
    following.update_below = 10.0
    runs = torch.rand(3, 3, 16, 16)
    found, plain = following(runs), network(runs)
    torch.testing.assert_close(found[0], plain[0])
    assert not torch.allclose(found[1:], plain[1:])
    assert torch.equal(following.memory.items, network.memory.items)  # the state dict stays as it is
    by_hand = copy.deepcopy(network)
    for run, expected in zip(runs.split(1), found.split(1), strict=True):
        torch.testing.assert_close(by_hand(run), expected)
        by_hand.memory.items.copy_(by_hand.memory.updated(by_hand.encoder(run[:, 1:])[-1]))
    assert not torch.allclose(following(runs), found)
    following.begin_volume()
    torch.testing.assert_close(following(runs), found)
    following.begin_volume()
    following.update_below = 0.0
    torch.testing.assert_close(following(runs), plain)


def test_items_do_not_follow_blank_runs(network):
    network.eval().update_below = 10.0
    network(torch.zeros(2, 3, 16, 16))
    assert network.memory.followed is None


def test_items_that_follow_are_not_exported(network):
    run = torch.rand(1, 3, 16, 16)
    network.eval().update_below = 0.01
    for export in (torch.jit.script, lambda network: torch.jit.trace(network, run)):
        with pytest.raises(RuntimeError, match=r"MemoryAutoencoder .* cannot be exported: set update_below to None"):
            export(network)


@torch.no_grad()
def test_onnx_gives_what_the_network_gives(network, tmp_path):
    onnxruntime, file = pytest.importorskip("onnxruntime"), str(tmp_path / "model.onnx")
    axes = {"image": {0: "batch", 2: "height", 3: "width"}}
    torch.onnx.export(
        network.eval(), (torch.rand(2, 3, 16, 16),), file, dynamo=False, input_names=["image"], dynamic_axes=axes
    )
    run = torch.rand(3, 3, 12, 18)
    (scores,) = onnxruntime.InferenceSession(file).run(None, {"image": run.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), network(run), rtol=0, atol=1e-5)


def test_volumes_are_told_apart_by_the_inferer(network):
    network.eval().update_below = 10.0
    inferer = SequenceInferer((32, 32), (-1, -2), sw_batch_size=4)
    volume = torch.rand(1, 1, 32, 32, 6)
    with torch.no_grad():
        first = inferer(volume, network)
        assert torch.equal(inferer(volume, network), first)
        assert torch.equal(inferer(volume, nn.Sequential(network)), first)
        assert torch.equal(inferer(torch.cat([1 - volume, volume]), network)[1:], first)


def test_processes_share_the_update(monkeypatch, memory):
    """Two processes, each with a half of the batch, as one with all of it."""
    queries = golden("query").double()
    whole = memory.updated(queries)
    halves = [memory._queries(half) for half in queries.split(1)]
    similarities = [half @ memory._unit_items().t() for half in halves]
    highest = torch.stack(similarities).amax(dim=(0, 1))

    def all_reduce(tensor, operation=None):
        if operation is not None:
            tensor.copy_(highest)
            return
        sums = [
            (F.one_hot(each.argmax(1), 6) * (each - highest).exp()).t() @ half
            for each, half in zip(similarities, halves, strict=True)
        ]
        torch.testing.assert_close(tensor, sums[0])
        tensor.copy_(sums[0] + sums[1])

    monkeypatch.setattr(memory_autoencoder.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(memory_autoencoder.distributed, "all_reduce", all_reduce)
    torch.testing.assert_close(memory.train().updated(queries[:1]), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 1}, "in_channels must be those of a slice and of one or more context slices"),
        ({"num_items": 1}, "num_items must be at least 2, got 1"),
        ({"distance_weight": 1.5}, r"distance_weight must be in \[0, 1\], got 1.5"),
        ({"update_below": 2}, r"update_below must be in \[0, 1\], got 2"),
        ({"score": "block"}, "score must be one of l1, l2, ssim, msgms"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MemoryAutoencoder(**{"spatial_dims": 2, "in_channels": 3, **arguments})
