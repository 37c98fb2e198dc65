"""Branches that are one convolution at evaluation; FastViT, which consists of them."""

from __future__ import annotations

import re

import pytest
import torch
from monai.utils import optional_import
from torch import nn

from ssmctb_monai.networks.blocks import FastViT, RepConvolution, RepMixer

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def used(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with weights and statistics as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, NORMS):
            for values in (part.weight.data, part.bias.data, part.running_mean, part.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
        if hasattr(part, "gamma"):
            part.gamma.data.copy_(torch.rand(part.gamma.shape, generator=generator))
    return module


def branch_by_branch(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the branches give with running statistics, without folding."""
    module.train()
    for part in module.modules():
        if isinstance(part, NORMS):
            part.eval()
    return module(x)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    ("channels", "kernel_sizes", "stride", "groups", "identity"),
    [
        ((4, 4), [3, 1], 1, 4, True),
        ((4, 8), [7, 3], 2, 4, False),
        ((3, 6), [3, 1], 2, 1, False),
        ((4, 4), [1], 1, 2, True),
    ],
)
def test_one_convolution_is_the_sum_of_the_branches(spatial_dims, channels, kernel_sizes, stride, groups, identity):
    torch.manual_seed(0)
    module = used(RepConvolution(spatial_dims, *channels, kernel_sizes, stride, groups, identity))
    x = torch.randn(2, channels[0], *[9, 8, 7][:spatial_dims])
    expected = branch_by_branch(module, x)
    found = module.eval()(x)
    assert found.shape == (2, channels[1], *[-(-size // stride) for size in x.shape[2:]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    alone = module.branches[0](x)
    assert (found - alone).abs().max() > 0.1 or len(kernel_sizes) + identity == 1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_mixer_is_one_convolution(spatial_dims):
    torch.manual_seed(0)
    module = used(RepMixer(spatial_dims, 4))
    x = torch.randn(2, 4, *[9, 8, 7][:spatial_dims])
    expected = branch_by_branch(module, x)
    by_hand = x + module.gamma.view(-1, *[1] * spatial_dims) * (module.mixer(x) - module.norm(x))
    torch.testing.assert_close(expected, by_hand)
    torch.testing.assert_close(module.eval()(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(RepMixer(spatial_dims, 4).eval()(x), x, atol=1e-4, rtol=0)  # γ is small at first


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_fastvit_keeps_its_output_at_evaluation(spatial_dims):
    torch.manual_seed(0)
    module = used(FastViT(spatial_dims, 2, width=4, depths=(1, 1, 2, 1)))
    x = torch.rand(2, 2, *[64, 32, 32][:spatial_dims])
    expected = branch_by_branch(module, x)
    assert expected.shape == (2, 32, *[size // 32 for size in x.shape[2:]])
    torch.testing.assert_close(module.eval()(x), expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-5)


def test_structure_of_t8():
    """Published: 4.03 million parameters, of which a head for 1000 classes has 0.77, the convolution before it 0.09."""
    with torch.device("meta"):
        module = FastViT(2, 3)
    mixers = [part for part in module if isinstance(part, RepMixer)]
    assert [part.gamma.shape[0] for part in mixers] == [48] * 2 + [96] * 2 + [192] * 4 + [384] * 2
    assert sum(parameter.numel() for parameter in module.parameters()) == pytest.approx(3.17e6, rel=0.01)


def test_features_of_timm():
    timm, found = optional_import("timm")
    if not found:
        pytest.skip("timm, which has FastViT in 2D, is not installed")
    torch.manual_seed(0)
    other = used(timm.create_model("fastvit_t8", pretrained=False)).eval()
    module = FastViT(2, 3).eval()
    module.load_state_dict(from_timm(other, module))
    x = torch.rand(2, 3, 64, 96)
    expected = other.stages(other.stem(x))
    torch.testing.assert_close(module(x), expected, atol=1e-4 * float(expected.detach().abs().max()), rtol=1e-4)


RENAMED = [  # timm's names within a layer, and ours
    (r"mlp\.conv\.", "layers.0.large_conv."),
    (r"(conv_kxk\.0|large_conv)\.conv\.", "branches.0.0."),
    (r"(conv_kxk\.0|large_conv)\.bn\.", "branches.0.1."),
    (r"(conv_scale|small_conv)\.conv\.", "branches.1.0."),
    (r"(conv_scale|small_conv)\.bn\.", "branches.1.1."),
    (r"norm\.identity\.", "norm."),
    (r"layer_scale\.", ""),
    (r"mlp\.fc1\.", "layers.1."),
    (r"mlp\.fc2\.", "layers.3."),
]


def from_timm(other: nn.Module, module: FastViT) -> dict[str, torch.Tensor]:
    """Weights of timm's stem and stages, by the names of ours, whose layers are in the same order."""
    layers = [f"stem.{index}." for index in range(3)]
    for stage, content in enumerate(other.stages):
        layers += [f"stages.{stage}.downsample.proj.{index}." for index in range(2) if stage > 0]
        for index in range(len(content.blocks)):
            layers += [f"stages.{stage}.blocks.{index}.token_mixer.", f"stages.{stage}.blocks.{index}."]
    ours = [name for name, part in module.named_children() if list(part.parameters())]
    state = {}
    for key, value in other.state_dict().items():
        found = [index for index, layer in enumerate(layers) if key.startswith(layer)]
        if found:
            name = key.removeprefix(layers[found[0]])
            for pattern, replacement in RENAMED:
                name = re.sub(pattern, replacement, name)
            state[f"{ours[found[0]]}.{name}"] = value.flatten() if "gamma" in name else value
    return state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_sizes": []}, "kernel_sizes"),
        ({"kernel_sizes": [2]}, "kernel_sizes"),
        ({"kernel_sizes": [1, 3]}, "largest one first"),
        ({"stride": 2, "identity": True}, "identity"),
        ({"out_channels": 8, "identity": True}, "identity"),
        ({"spatial_dims": 1}, "spatial_dims"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RepConvolution(**{"spatial_dims": 2, "in_channels": 4, "out_channels": 4, "kernel_sizes": [3], **arguments})
