"""SelfSupervisedLoss: task loss + λ · sum of the block losses, for any loss and network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import nn

from ssmctb_monai.losses import DRAEMLoss, SelfSupervisedLoss, block_reconstruction_loss
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB


class Nested(nn.Module):
    """Blocks at different depths, in a list, a dictionary and a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([SSPCAB(2, 8)])
        self.rest = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sequential(SSMCTB(2, 8, token_dim=8)))})

    @property
    def blocks(self):
        return [self.first[0], self.rest["a"][1][0]]

    def forward(self, x):
        return self.rest["a"](self.first[0](x))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Nested().train()


@pytest.fixture
def x():
    return torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(0))


def test_value_is_task_plus_weighted_sum_over_nested_blocks(network, x):
    inputs = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: inputs.append((output, args[0])))
    output = network(x)
    total = SelfSupervisedLoss(nn.L1Loss(), network, weight=0.25)(output, x)
    (sspcab, ssmctb) = inputs
    expected = F.l1_loss(output, x) + 0.25 * (F.mse_loss(*sspcab) + F.huber_loss(*ssmctb, delta=1.0))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(block_reconstruction_loss(network), (total - F.l1_loss(output, x)) / 0.25)


def test_default_weight_is_the_paper_s(network, x):
    output = network(x)
    total = SelfSupervisedLoss(nn.MSELoss(), network)(output, x)
    torch.testing.assert_close(total - F.mse_loss(output, x), 0.1 * block_reconstruction_loss(network))


def test_weight_0_is_the_wrapped_loss_exactly(network, x):
    output = network(x)
    total = SelfSupervisedLoss(nn.MSELoss(), network, weight=0)(output, x)
    assert block_reconstruction_loss(network) > 0
    assert torch.equal(total, F.mse_loss(output, x))


def test_evaluation_mode_adds_nothing(network, x):
    loss = SelfSupervisedLoss(nn.MSELoss(), network, weight=100.0)
    loss(network(x), x)
    output = network.eval()(x)
    assert torch.equal(loss(output, x), F.mse_loss(output, x))
    assert block_reconstruction_loss(network) == 0


def test_gradients_are_those_of_the_sum(network, x):
    parameters = list(network.parameters())
    output = network(x)
    expected = F.mse_loss(output, x) + 0.5 * sum(block.reconstruction_loss for block in network.blocks)
    expected_gradients = torch.autograd.grad(expected, parameters)
    total = SelfSupervisedLoss(nn.MSELoss(), network, weight=0.5)(network(x), x)
    torch.testing.assert_close(torch.autograd.grad(total, parameters), expected_gradients)


def test_gradient_accumulation_counts_each_forward_once(network, x):
    loss = SelfSupervisedLoss(nn.MSELoss(), network, weight=0.5)
    halves = x[:1], x[1:]
    for half in halves:
        loss(network(half), half).backward()
    accumulated = [parameter.grad for parameter in network.parameters()]
    expected = [torch.zeros_like(gradient) for gradient in accumulated]
    for half in halves:
        output = network(half)
        total = F.mse_loss(output, half) + 0.5 * sum(block.reconstruction_loss for block in network.blocks)
        for gradient, part in zip(expected, torch.autograd.grad(total, list(network.parameters())), strict=True):
            gradient += part
    torch.testing.assert_close(accumulated, expected)


def test_shared_block_counts_once_with_its_last_use(x):
    block = SSPCAB(2, 8)
    network = nn.Sequential(block, nn.Identity(), nn.ModuleDict({"again": block})["again"]).train()
    passes = []
    block.register_forward_hook(lambda module, args, output: passes.append((output, args[0])))
    network(x)
    assert len(passes) == 2
    torch.testing.assert_close(block_reconstruction_loss(network), F.mse_loss(*passes[1]))


def test_last_of_several_passes_counts(network, x):
    outputs = [network(scale * x) for scale in (1, 2)]
    loss = block_reconstruction_loss(network)
    network(x)
    assert loss > 1.5 * block_reconstruction_loss(network)
    network(2 * x)
    total = SelfSupervisedLoss(nn.MSELoss(), network, weight=1)(outputs[0], x)
    torch.testing.assert_close(total, F.mse_loss(outputs[0], x) + loss)


def test_with_monai_loss_and_plain_sequential():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), SSMCTB(3, 8, token_dim=8), nn.Conv3d(8, 2, 1)).train()
    image, label = torch.randn(2, 1, 8, 9, 7), torch.randint(0, 2, (2, 1, 8, 9, 7))
    dice = DiceCELoss(to_onehot_y=True, softmax=True)
    output = network(image)
    total = SelfSupervisedLoss(dice, network, weight=0.1)(output, label)
    torch.testing.assert_close(total, dice(output, label) + 0.1 * network[1].reconstruction_loss)
    total.backward()
    assert network[0].weight.grad.abs().sum() > 0


def test_inside_a_monai_unet():
    torch.manual_seed(0)
    network = UNet(2, 1, 2, channels=(8, 16), strides=(2,)).train()
    network.model = nn.Sequential(nn.Conv2d(1, 8, 1), SSPCAB(2, 8), nn.Conv2d(8, 1, 1), network.model)
    label = torch.randint(0, 2, (2, 1, 16, 16))
    output = network(torch.randn(2, 1, 16, 16))
    dice = DiceCELoss(to_onehot_y=True, softmax=True)
    total = SelfSupervisedLoss(dice, network)(output, label)
    torch.testing.assert_close(total - dice(output, label), 0.1 * network.model[1].reconstruction_loss)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_after_a_pass_without_gradient_is_refused(network, x, context):
    """As activation checkpointing with reentrant passes runs it; the block is named."""
    with context():
        output = network(x)
    with pytest.raises(RuntimeError, match=r"SSPCAB 'first\.0' has no gradient.*use_reentrant=False.*no_grad"):
        block_reconstruction_loss(network)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        SelfSupervisedLoss(nn.L1Loss(), network)(output, x)
    network.first[0](x)
    with pytest.raises(RuntimeError, match=r"SSMCTB 'rest\.a\.1\.0' has no gradient"):
        block_reconstruction_loss(network)
    network(x)
    assert block_reconstruction_loss(network).requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_evaluation_without_gradient(network, x, context):
    """Of a pass with gradient and of one without."""
    loss = SelfSupervisedLoss(nn.MSELoss(), network, weight=0.5)
    output = network(x)
    expected = loss(output, x).detach()
    with context():
        torch.testing.assert_close(loss(output, x), expected)
        total = loss(network(x), x)
    assert not total.requires_grad
    torch.testing.assert_close(total, expected)


def test_frozen_blocks(network, x):
    """With nothing to train, or behind layers that are; a single parameter to train makes a block one to train."""
    expected = SelfSupervisedLoss(nn.MSELoss(), network)(network(x), x).detach()
    for block in network.blocks:
        block.requires_grad_(False)
    total = SelfSupervisedLoss(nn.MSELoss(), network)(network(x), x)
    total.backward()
    torch.testing.assert_close(total.detach(), expected)
    assert network.rest["a"][0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        output = network(x)
    torch.testing.assert_close(SelfSupervisedLoss(nn.MSELoss(), network)(output, x), expected)
    network.blocks[1].convolution.bias.requires_grad_()
    with pytest.raises(RuntimeError, match=r"rest\.a\.1\.0"):
        block_reconstruction_loss(network)


def test_task_loss_of_half_precision(network, x):
    """The block loss keeps its digits."""
    output = network(x)
    for dtype in (torch.float16, torch.bfloat16):
        loss = SelfSupervisedLoss(lambda *pair, dtype=dtype: F.mse_loss(*pair).to(dtype), network, weight=0.5)
        expected = F.mse_loss(output, x).to(dtype).float() + 0.5 * block_reconstruction_loss(network)
        assert torch.equal(loss(output, x), expected)


def test_keyword_arguments_reach_the_task_loss(network, x):
    loss = SelfSupervisedLoss(F.mse_loss, network, weight=0)
    output = network(x)
    assert torch.equal(loss(output, target=x, reduction="sum"), F.mse_loss(output, x, reduction="sum"))


def test_loss_does_not_own_the_network(network):
    loss = SelfSupervisedLoss(nn.MSELoss(), network)
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    assert network not in list(loss.modules())
    loss.eval()  # as an evaluator may do
    assert network.training


@pytest.mark.parametrize("model", [nn.Conv2d(1, 1, 1), nn.Sequential()])
def test_network_without_blocks_is_taken_on_request(model):
    with pytest.raises(ValueError, match=f"{type(model).__name__} contains no SSPCAB or SSMCTB.*require_blocks=False"):
        SelfSupervisedLoss(nn.MSELoss(), model)
    loss, prediction = SelfSupervisedLoss(nn.MSELoss(), model, require_blocks=False), torch.rand(2, 1, 8, 8)
    assert loss(prediction, prediction + 2) == 4
    assert loss.parts == {"task": 4, "block": 0}


def test_negative_weight_is_refused(network):
    with pytest.raises(ValueError, match="weight"):
        SelfSupervisedLoss(nn.MSELoss(), network, weight=-0.1)


def test_parts_are_the_summands():
    torch.manual_seed(0)
    network, image = nn.Sequential(SSMCTB(2, 3)), torch.rand(2, 3, 8, 8)
    loss = SelfSupervisedLoss(nn.MSELoss(), network, weight=0.5)
    assert loss.parts == {}
    total = loss(network(image), image)
    assert loss.parts["task"] == nn.functional.mse_loss(network(image), image)
    assert loss.parts["block"] == network[0].reconstruction_loss
    assert total == loss.parts["task"] + 0.5 * loss.parts["block"]
    assert not any(part.requires_grad for part in loss.parts.values())


def test_parts_of_the_task_loss_are_passed_on():
    network, image = nn.Sequential(SSMCTB(2, 2)), torch.rand(2, 2, 16, 16)
    loss = SelfSupervisedLoss(DRAEMLoss(2), network, weight=0.25)
    total = loss((network(image), image), (image, image[:, :1].round())).detach()
    assert list(loss.parts) == ["l2", "ssim", "focal", "block"]
    assert loss.parts["block"] == network[0].reconstruction_loss
    assert total == loss.parts["l2"] + loss.parts["ssim"] + loss.parts["focal"] + 0.25 * loss.parts["block"]


def test_a_network_that_has_not_run_has_no_block_loss():
    network, image = nn.Sequential(SSMCTB(2, 3)), torch.rand(2, 3, 8, 8)
    loss = SelfSupervisedLoss(nn.MSELoss(), network)
    prediction = network(image)
    network.train()  # drops the loss of the pass before
    with pytest.raises(RuntimeError, match=r"No block of the network has run.*DistributedDataParallel"):
        loss(prediction, image)
    with torch.no_grad():
        assert loss(prediction, image) == F.mse_loss(prediction, image)
    assert loss(network.eval()(image), image) == F.mse_loss(network(image), image)
