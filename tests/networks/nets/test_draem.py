"""DRAEM: structure by execution order, padding, modes, export, training."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssmctb_monai.losses import DRAEMLoss, SelfSupervisedLoss
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB
from ssmctb_monai.networks.blocks.self_supervised_block import named_blocks
from ssmctb_monai.networks.nets import DRAEM, Reconstruction

DIMS = [2, 3]
SUB_NETWORKS = ["reconstructive", "discriminative"]
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (nn.MaxPool2d, nn.MaxPool3d)


class Probe(nn.Module):
    """A block that changes nothing and is easily found."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x):
        assert x.shape[1] == self.channels
        return x


def draem(spatial_dims: int, **arguments) -> DRAEM:
    torch.manual_seed(0)
    return DRAEM(spatial_dims, **{"reconstructive_width": 2, "discriminative_width": 2, **arguments})


def execution_order(network: DRAEM, sub_network: str, size: int = 64) -> list[tuple[nn.Module, torch.Size, torch.Size]]:
    """Convolutions, norms, … and blocks of a sub-network in the order of a forward pass, with input and output shape.

    What lies within a block does not count.
    """
    part = getattr(network, sub_network)
    steps: list[tuple[nn.Module, torch.Size, torch.Size]] = []
    blocks = [module for module in part.modules() if isinstance(module, (SSMCTB, SSPCAB, Probe))]
    inside = {id(module) for block in blocks for module in block.modules() if module is not block}
    leaves = [module for module in part.modules() if id(module) not in inside and not list(module.children())]
    hooks = [
        module.register_forward_hook(lambda module, args, output: steps.append((module, args[0].shape, output.shape)))
        for module in [*leaves, *(block for block in blocks if list(block.children()))]
    ]
    device = next(network.parameters()).device
    network.eval()(torch.zeros(1, network.in_channels, *[size] * network.spatial_dims, device=device))
    for hook in hooks:
        hook.remove()
    return [step for step in steps if not isinstance(step[0], nn.Identity)]


def steps_of(steps, kinds):
    return [step for step in steps if isinstance(step[0], kinds)]


# ---------------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize(
    ("sub_network", "width", "factors"),
    [("reconstructive", 128, [1, 2, 4, 8, 8]), ("discriminative", 64, [1, 2, 4, 8, 8, 8])],
)
def test_structure_at_the_widths_of_the_paper(spatial_dims, sub_network, width, factors):
    with torch.device("meta"):  # shapes without memory or arithmetic
        network = DRAEM(spatial_dims, 4, reconstructive_width=128, discriminative_width=64, block=None)
        steps = execution_order(network, sub_network)
    convolutions = steps_of(steps, CONVOLUTIONS)
    assert {convolution.kernel_size for convolution, _, _ in convolutions} == {(3,) * spatial_dims}

    # Encoder: two convolutions a stage, at half the resolution of the stage before.
    encoder, decoder = convolutions[: 2 * len(factors)], convolutions[2 * len(factors) :]
    assert [output[1] for _, _, output in encoder] == [width * factor for factor in factors for _ in range(2)]
    assert [output[-1] for _, _, output in encoder] == [64 >> stage for stage in range(len(factors)) for _ in range(2)]
    assert encoder[0][1][1] == (4 if sub_network == "reconstructive" else 8)
    assert len(steps_of(steps, POOLS)) == len(factors) - 1

    # Decoder: back up by bi-/trilinear upsampling through the widths of the encoder; a 3 x 3 output convolution.
    upsamplings = steps_of(steps, nn.Upsample)
    assert len(upsamplings) == len(factors) - 1
    for module, _, _ in upsamplings:
        assert (module.mode, module.align_corners) == ("bilinear" if spatial_dims == 2 else "trilinear", True)
    last_of_stage = {output[-1]: output[1] for _, _, output in decoder[:-1]}
    assert last_of_stage == {64 >> stage: width * factors[stage] for stage in range(len(factors) - 1)}
    assert decoder[-1][2][1] == (4 if sub_network == "reconstructive" else 2)

    # Convolution, batch norm, ReLU; nothing after the output convolution.
    kinds = ["C", "N", "A"] * (len(convolutions) - 1) + ["C"]
    names = {**dict.fromkeys(CONVOLUTIONS, "C"), **dict.fromkeys(NORMS, "N"), nn.ReLU: "A"}
    assert [names[type(module)] for module, _, _ in steps if type(module) in names] == kinds


def test_widths_are_arguments():
    with torch.device("meta"):
        network = DRAEM(3, reconstructive_width=3, discriminative_width=5, block=None)
        assert steps_of(execution_order(network, "reconstructive"), CONVOLUTIONS)[0][2][1] == 3
        assert steps_of(execution_order(network, "discriminative"), CONVOLUTIONS)[0][2][1] == 5


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize(("sub_network", "bottleneck"), [("reconstructive", 9), ("discriminative", 11)])
def test_skips_in_the_discriminative_sub_network_only(spatial_dims, sub_network, bottleneck):
    network = draem(spatial_dims, reconstructive_width=4, discriminative_width=4, block=None).eval()
    activation = steps_of(execution_order(network, sub_network, size=32), nn.ReLU)[bottleneck][0]
    activation.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    part = getattr(network, sub_network)
    channels = 1 if sub_network == "reconstructive" else 2
    x = torch.rand(2, channels, *[32] * spatial_dims)
    same = torch.equal(*part(x))  # two different images, and nothing of either passes the bottleneck
    assert same == (sub_network == "reconstructive")


def test_discriminative_sub_network_sees_reconstruction_then_input():
    network = draem(2, in_channels=2).train()
    seen = []
    network.discriminative.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.rand(2, 2, 32, 32)
    reconstruction, _ = network(x)
    torch.testing.assert_close(seen[0], torch.cat([reconstruction, x], dim=1))


@pytest.mark.parametrize("sub_network", SUB_NETWORKS)
@pytest.mark.parametrize(
    ("spatial_dims", "block", "kind"),
    [(2, "sspcab", SSPCAB), (3, "ssmctb", SSMCTB), (2, Probe, Probe)],
    ids=["sspcab", "ssmctb", "callable"],
)
def test_block_takes_the_place_of_the_penultimate_convolution(spatial_dims, sub_network, block, kind):
    widths = {"reconstructive_width": 8, "discriminative_width": 16}
    width = widths[f"{sub_network}_width"]
    with torch.device("meta"):
        plain = execution_order(DRAEM(spatial_dims, **widths, block=None), sub_network)
        network = DRAEM(spatial_dims, **widths, block=block)
        steps = execution_order(network, sub_network)
    assert [type(module) for module, _, _ in steps[-2:]] == [kind, type(plain[-1][0])]
    assert steps[-2][1] == steps[-2][2] == (1, width, *[64] * spatial_dims)
    # All before it is as without a block, and convolution, norm and activation are gone.
    assert [type(module) for module, _, _ in steps[:-2]] == [type(module) for module, _, _ in plain[:-4]]
    assert [step[1:] for step in steps[:-2]] == [step[1:] for step in plain[:-4]]
    blocks = [module for module in network.modules() if isinstance(module, kind)]
    assert len(blocks) == 2


@pytest.mark.parametrize("block_in", SUB_NETWORKS)
def test_block_in_one_sub_network(block_in):
    widths = {"reconstructive_width": 8, "discriminative_width": 16}
    with torch.device("meta"):
        plain = DRAEM(2, **widths, block=None).state_dict()
        both = DRAEM(2, **widths, block="ssmctb").state_dict()
        network = DRAEM(2, **widths, block="ssmctb", block_in=block_in)
    expected = {name: (both if name.startswith(block_in) else plain)[name].shape for name in network.state_dict()}
    assert {name: weight.shape for name, weight in network.state_dict().items()} == expected
    assert [name.partition(".")[0] for name in named_blocks(network)] == [block_in]


def test_none_is_no_block():
    with torch.device("meta"):
        assert list(DRAEM(2, block="none").state_dict()) == list(DRAEM(2, block=None).state_dict())


def test_callable_block_keeps_its_own_settings():
    network = draem(3, block=lambda channels: SSMCTB(3, channels, dilation=0, loss="mae"))
    blocks = [module for module in network.modules() if isinstance(module, SSMCTB)]
    assert [block.loss for block in blocks] == ["mae", "mae"]


# ------------------------------------------------------------------------------------------------------ modes and sizes


@pytest.mark.parametrize(
    ("spatial_dims", "in_channels", "size"),
    [(2, 1, (33, 47)), (2, 3, (64, 32)), (2, 1, (5, 7)), (2, 3, (1, 100)), (3, 1, (33, 20, 7)), (3, 3, (9, 9, 9))],
)
def test_shapes_in_both_modes(spatial_dims, in_channels, size):
    network = draem(spatial_dims, in_channels=in_channels)
    x = torch.rand(2, in_channels, *size)
    with torch.no_grad():
        reconstruction, logits = network.train()(x)
        anomaly_map = network.eval()(x)
    assert reconstruction.shape == x.shape
    assert logits.shape == (2, 2, *size)
    assert isinstance(anomaly_map, torch.Tensor)
    assert anomaly_map.shape == (2, 1, *size)
    assert 0 <= anomaly_map.min() <= anomaly_map.max() <= 1


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_padding_leaves_sizes_that_fit_alone(spatial_dims):
    network = draem(spatial_dims).eval()
    x = torch.rand(1, 1, *(64, 32, 32)[:spatial_dims])
    with torch.no_grad():
        logits = network.discriminative(torch.cat([network.reconstructive(x), x], dim=1))
        torch.testing.assert_close(network(x), torch.softmax(logits, dim=1)[:, 1:])


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_padding_repeats_the_border_and_is_cropped(spatial_dims):
    network = draem(spatial_dims).eval()
    size = (33, 30, 5)[:spatial_dims]
    x = torch.rand(1, 1, *size)
    padding = [amount for length in reversed(size) for amount in (0, -length % 32)]
    padded = F.pad(x, padding, mode="replicate")
    crop = (..., *(slice(length) for length in size))
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[crop])
        # In training mode as well; batch norm sees the padded batch in both.
        for output, expected in zip(
            network.train()(x.repeat(2, 1, *[1] * spatial_dims)),
            network(padded.repeat(2, 1, *[1] * spatial_dims)),
            strict=True,
        ):
            torch.testing.assert_close(output, expected[crop])


def test_anomaly_map_is_the_softmax_of_the_anomaly_channel():
    network = draem(2, block=None)
    final = steps_of(execution_order(network, "discriminative"), CONVOLUTIONS)[-1][0]
    nn.init.zeros_(final.weight)
    final.bias.data = torch.tensor([0.0, 2.0])
    anomaly_map = network.eval()(torch.rand(1, 1, 32, 32))
    torch.testing.assert_close(anomaly_map, torch.full((1, 1, 32, 32), 0.880797))  # 1 / (1 + e^-2)
    _, logits = network.train()(torch.rand(2, 1, 32, 32))
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], torch.full((2, 32, 32), 2.0))


def test_evaluation_mode_keeps_no_block_loss():
    network = draem(2)
    blocks = [module for module in network.modules() if isinstance(module, SSMCTB)]
    network.train()(torch.rand(2, 1, 32, 32))
    assert all(block.reconstruction_loss is not None for block in blocks)
    network.eval()(torch.rand(2, 1, 32, 32))
    assert all(block.reconstruction_loss is None for block in blocks)


# -------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize(("spatial_dims", "block"), [(2, "sspcab"), (3, "ssmctb")])
def test_torchscript_saves_and_loads(spatial_dims, block):
    network = draem(spatial_dims, in_channels=2, block=block, reconstructive_width=8, discriminative_width=8).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    with torch.no_grad():
        for size in ((33, 20, 9), (32, 32, 32)):
            x = torch.rand(2, 2, *size[:spatial_dims])
            torch.testing.assert_close(loaded(x), network(x))


@pytest.mark.process
def test_torch_export_with_dynamic_sizes():
    """Sizes off the stride; `torch.export` keeps apart the sizes that need padding from those that need none."""
    network = draem(2).eval()
    x = torch.rand(2, 1, 33, 40)
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(network, (x,), dynamic_shapes=(dynamic,)).module()
    with torch.no_grad():
        for size in ((33, 40), (70, 47)):
            image = torch.rand(1, 1, *size)
            torch.testing.assert_close(exported(image), network(image))


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(("spatial_dims", "block"), [(2, None), (2, "sspcab"), (3, "ssmctb")])
def test_gradients_reach_every_parameter(spatial_dims, block):
    network = draem(spatial_dims, block=block, reconstructive_width=8, discriminative_width=8).train()
    for name, parameter in network.named_parameters():
        if name.endswith("attention.fc.0.bias"):
            nn.init.ones_(parameter)  # the one hidden unit of so narrow a block may be dead
    x = torch.rand(2, 1, *(64, 32, 32)[:spatial_dims])
    mask = (torch.rand_like(x) > 0.8).float()
    loss = SelfSupervisedLoss(DRAEMLoss(spatial_dims, ssim_window=5), network, require_blocks=False)
    loss(network(x), (x, mask)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_few_steps_lower_the_loss():
    network = draem(2, reconstructive_width=4, discriminative_width=4).train()
    clean = torch.rand(4, 1, 8, 8).repeat_interleave(5, 2).repeat_interleave(5, 3)  # 40 x 40
    mask = torch.zeros_like(clean)
    mask[:, :, 10:20, 15:30] = 1
    loss = SelfSupervisedLoss(DRAEMLoss(2), network)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    history, parts = [], []
    for _ in range(12):
        total = loss(network(torch.where(mask > 0, 1 - clean, clean)), (clean, mask))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
        parts.append(loss.parts)
    assert history[-1] < 0.9 * history[0]
    for name in ("l2", "focal"):
        assert parts[-1][name] < parts[0][name], name


def test_initialisation_is_reproducible():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([parameter.detach().flatten() for parameter in DRAEM(2, 1, 2, 2).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_deepcopy_after_a_training_forward():
    network = draem(2).train()
    network(torch.rand(2, 1, 32, 32))
    twin = copy.deepcopy(network)
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(twin.eval()(x), network.eval()(x))
    next(twin.parameters()).data += 1
    assert not torch.equal(next(twin.parameters()), next(network.parameters()))


def test_bfloat16_autocast():
    network = draem(2).train()
    x = torch.rand(2, 1, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        loss = SelfSupervisedLoss(DRAEMLoss(2), network)(network(x), (x, torch.zeros_like(x)))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


# ------------------------------------------------------------------------------------------------------- reconstruction


@pytest.mark.parametrize("size", [(32, 32), (45, 33), (33, 9, 5)])
def test_reconstruction_is_that_of_training(size):
    network = draem(len(size), in_channels=2, block=None)
    for module in network.modules():
        if isinstance(module, NORMS):  # the same statistics in both modes
            module.eval()
    x = torch.rand(2, 2, *size)
    expected, _ = network(x)
    alone = Reconstruction(network)
    torch.testing.assert_close(alone(x), expected)
    assert not torch.allclose(expected, x, atol=0.1)
    assert alone.eval()(x).shape == x.shape
    assert not network.training  # its weights are those of the network
    assert {id(parameter) for parameter in alone.parameters()} == {id(parameter) for parameter in network.parameters()}


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims"),
        ({"spatial_dims": 4}, "spatial_dims"),
        ({"in_channels": 0}, "in_channels"),
        ({"reconstructive_width": 0}, "reconstructive_width"),
        ({"discriminative_width": -1}, "discriminative_width"),
        ({"block": "se"}, "block"),
        ({"block_in": "encoder"}, "block_in must be one of"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DRAEM(**{"spatial_dims": 2, **arguments})


@pytest.mark.parametrize("shape", [(1, 1, 32, 32, 32), (1, 32, 32), (1, 3, 32, 32)])
def test_ill_inputs(shape):
    with pytest.raises(ValueError, match="2 spatial dimensions"):
        draem(2, in_channels=1)(torch.zeros(shape))
