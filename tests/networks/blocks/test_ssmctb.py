from __future__ import annotations

import pytest
import torch
from block_checks import (
    SIZES,
    assert_compiles,
    assert_every_parameter_matters,
    assert_exports,
    assert_script_save,
    gradcheck_with_parameters,
    random_input,
)
from torch import nn

from ssmctb_monai.networks.blocks import SSMCTB, ChannelTransformer, MaskedConvolution, SpatialTransformer

DIMS = [2, 3]
ATTENTIONS = ["none", "se", "channel", "spatial", "channel+spatial"]

# The paper's Tables II, IX, X, XI and XII, one axis of the ablation after the other, away from the default.
ABLATIONS = [
    {},
    *({"attention": attention} for attention in ATTENTIONS if attention != "channel"),
    *({"pool_size": pool_size} for pool_size in (2, 3, 4)),
    *({"token_dim": token_dim} for token_dim in (16, 128)),
    *({"num_heads": num_heads} for num_heads in (3, 5, 6)),
    *({"num_layers": num_layers} for num_layers in (1, 3)),
    *({"dilation": dilation} for dilation in (0, 2, 3)),
    *({"sub_kernel_size": sub_kernel_size} for sub_kernel_size in (2, 3)),
    *({"mask_size": mask_size} for mask_size in (3, 5)),
    *({"masked": False, "dilation": dilation} for dilation in (0, 1, 2)),
    *({"loss": loss} for loss in ("mse", "mae", "ssim")),
    {"delta": 0.5},
    {"attention": "se", "reduction_ratio": 2},
    {"attention": "spatial", "grid_size": 3, "token_dim": 16, "num_heads": 3, "num_layers": 1},
]


def small_block(spatial_dims: int, channels: int = 8, **arguments) -> SSMCTB:
    return SSMCTB(spatial_dims, channels, **{"token_dim": 8, "grid_size": 2, **arguments})


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("arguments", ABLATIONS, ids=str)
def test_ablations_of_the_paper_train(spatial_dims, arguments):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 8)
    block = small_block(spatial_dims, **arguments)
    output = block(x)
    assert output.shape == x.shape
    assert (output >= 0).all()
    (output.mean() + block.reconstruction_loss).backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert block.anomaly_map(x).shape == (2, 1, *SIZES[spatial_dims])


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention": "none"},
        {"attention": "se"},
        {"attention": "spatial"},
        {"attention": "channel+spatial"},
        {"pool_size": 2},
        {"token_dim": 16},
        {"num_heads": 3},
        {"num_layers": 1},
        {"dilation": 0},
        {"sub_kernel_size": 2},
        {"mask_size": 3},
        {"masked": False},
        {"attention": "se", "reduction_ratio": 2},
        {"attention": "spatial", "grid_size": 3},
    ],
    ids=str,
)
def test_every_argument_changes_the_output(arguments):
    x = random_input(2, 8)
    torch.manual_seed(0)
    reference = small_block(2)
    torch.manual_seed(0)
    block = small_block(2, **arguments)
    assert not torch.allclose(block(x), reference(x))
    if set(arguments) & {"reduction_ratio", "grid_size"}:
        torch.manual_seed(0)
        assert not torch.allclose(block(x), small_block(2, attention=arguments["attention"])(x))


def test_loss_and_delta_change_the_loss():
    x = 3 * random_input(2, 8)
    losses = set()
    for arguments in ({}, {"delta": 0.5}, {"loss": "mse"}, {"loss": "mae"}, {"loss": "ssim"}):
        torch.manual_seed(0)
        block = small_block(2, **arguments)
        block(x)
        losses.add(block.reconstruction_loss.item())
    assert len(losses) == 5


def test_defaults_are_the_paper_s():
    block = SSMCTB(3, 6)
    assert isinstance(block.convolution, MaskedConvolution)
    assert block.convolution.receptive_field == 5
    assert block.convolution.weight.shape == (6, 6, 2, 2, 2)
    assert isinstance(block.attention, ChannelTransformer)
    assert block.attention.projection.weight.shape == (64, 1)
    assert [layer.attention.num_heads for layer in block.attention.layers] == [4, 4]
    x = 4 * torch.randn(1, 6, 6, 6, 6)
    expected = nn.functional.huber_loss(block(x), x, delta=1.0)
    torch.testing.assert_close(block.reconstruction_loss, expected)


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("spatial_dims", 1, {}),
        ("spatial_dims", 4, {}),
        ("channels", 0, {}),
        ("sub_kernel_size", 0, {}),
        ("dilation", -1, {}),
        ("mask_size", 2, {}),
        ("mask_size", 2, {"masked": False}),
        ("attention", "self", {}),
        ("attention", None, {}),
        ("pool_size", 0, {}),
        ("token_dim", 0, {}),
        ("num_heads", 0, {}),
        ("num_layers", 0, {}),
        ("grid_size", 0, {"attention": "spatial"}),
        ("grid_size", 0, {"attention": "channel+spatial"}),
        ("num_heads", 0, {"attention": "spatial"}),
        ("reduction_ratio", 0, {"attention": "se"}),
        ("reduction_ratio", 9, {"attention": "se"}),
        ("loss", "l1", {}),
        ("delta", 0.0, {}),
        ("delta", -1.0, {}),
    ],
)
def test_ill_argument(name, value, others):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        SSMCTB(**{"spatial_dims": 2, "channels": 8, **others, name: value})


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_is_convolution_relu_attention(spatial_dims, attention):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 8)
    block = small_block(spatial_dims, attention=attention)
    torch.testing.assert_close(block(x), block.attention(block.convolution(x).clamp_min(0)))


def test_channel_and_spatial_attention_one_after_the_other():
    attention = small_block(2, attention="channel+spatial").attention
    assert [type(part) for part in attention] == [ChannelTransformer, SpatialTransformer]


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize(("sub_kernel_size", "dilation", "mask_size"), [(1, 1, 1), (1, 0, 1), (2, 1, 3)])
def test_dilated_control(spatial_dims, sub_kernel_size, dilation, mask_size):
    """An ordinary dilated convolution: it sees the centre, and as far as the masked one."""
    arguments = {"sub_kernel_size": sub_kernel_size, "dilation": dilation, "mask_size": mask_size, "attention": "none"}
    reach = []
    for masked in (True, False):
        block = small_block(spatial_dims, 1, masked=masked, **arguments)
        with torch.no_grad():
            block.convolution.weight.fill_(1.0)
        x = torch.rand(1, 1, *[13] * spatial_dims, requires_grad=True)
        block(x)[(0, 0, *[6] * spatial_dims)].backward()
        seen = x.grad[0, 0].nonzero() - 6
        assert (seen == 0).all(dim=1).any().item() == (not masked)
        reach.append((seen.min().item(), seen.max().item()))
    assert reach[0] == reach[1]
    assert len(seen) == 3**spatial_dims


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("attention", ["channel", "channel+spatial"])
def test_gradcheck(spatial_dims, attention):
    torch.manual_seed(0)
    block = SSMCTB(
        spatial_dims, 2, dilation=0, attention=attention, grid_size=1, token_dim=2, num_heads=2, num_layers=1
    )
    with torch.no_grad():
        block.convolution.bias.fill_(0.5)
    assert gradcheck_with_parameters(block, torch.rand(1, 2, *[3] * spatial_dims))


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("masked", [True, False])
def test_every_parameter_matters(spatial_dims, attention, masked):
    torch.manual_seed(0)
    block = small_block(spatial_dims, attention=attention, masked=masked, reduction_ratio=2)
    assert_every_parameter_matters(block, random_input(spatial_dims, 8))


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize(
    "arguments",
    [*({"attention": attention} for attention in ATTENTIONS), {"masked": False}, {"sub_kernel_size": 2}],
    ids=str,
)
def test_script_save(spatial_dims, arguments):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 8)
    block = small_block(spatial_dims, **arguments)
    block(x)  # as after training
    assert_script_save(block, x)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_scripted_in_training_mode_runs_without_loss(spatial_dims):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 8)
    block = small_block(spatial_dims)
    torch.testing.assert_close(torch.jit.script(block)(x), block(x))


@pytest.mark.process
@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("attention", ["channel", "channel+spatial"])
def test_export(spatial_dims, attention):
    torch.manual_seed(0)
    other = torch.randn(3, 8, *(10, 8, 9)[:spatial_dims])
    assert_exports(small_block(spatial_dims, attention=attention), random_input(spatial_dims, 8), other)


@pytest.mark.process
def test_compile():
    torch.manual_seed(0)
    assert_compiles(small_block(3, attention="channel+spatial", num_layers=1, pool_size=2), random_input(3, 8))


@pytest.mark.process
@pytest.mark.parametrize("loss", ["huber", "ssim"])
def test_compiled_block_keeps_its_loss(loss):
    """The loss of the last forward pass, in the graph, after the block or a network around it was compiled."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    x = random_input(2, 8)
    block = small_block(2, loss=loss)
    network = torch.compile(nn.Sequential(nn.Conv2d(8, 8, 1), block))
    for image in (x, 2 * x):
        network(image)
        loss_of_compiled = block.reconstruction_loss
        gradient = torch.autograd.grad(loss_of_compiled, block.convolution.weight)[0]
        block(network._orig_mod[0](image))
        expected = torch.autograd.grad(block.reconstruction_loss, block.convolution.weight)[0]
        torch.testing.assert_close(loss_of_compiled, block.reconstruction_loss)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)
