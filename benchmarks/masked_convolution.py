"""`MaskedConvolution`, forward and backward, against the sum of 4 (2D) or 8 (3D) convolutions of shifted crops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Row, Run, compare_with_memory, device, goal
from ssmctb_monai.networks.blocks import MaskedConvolution

# spatial_dims, channels, size, sub_kernel_size, goals
CASES = [
    (2, 64, 256, 1, goal("≥ 3", "≥ 2")),
    (3, 32, 64, 1, goal("≥ 5", "≥ 3")),
    (2, 64, 256, 2, "≥ 1"),
    (2, 64, 256, 3, "≥ 1"),
    (3, 32, 64, 2, "≥ 1"),
    (3, 32, 64, 3, "≥ 1"),
]


def shifted_sum(module: MaskedConvolution, x: Tensor) -> Tensor:
    convolve = F.conv2d if module.spatial_dims == 2 else F.conv3d
    size, cut = module.sub_kernel_size, module.receptive_field - module.sub_kernel_size
    padded = F.pad(x, [module.padding] * (2 * module.spatial_dims))
    output = module.bias.view(-1, *[1] * module.spatial_dims)
    for corner in itertools.product((0, 1), repeat=module.spatial_dims):
        image = padded[(..., *(slice(cut, None) if side else slice(-cut) for side in corner))]
        weight = module.weight[(..., *(slice(side * size, (side + 1) * size) for side in corner))]
        output = output + convolve(image, weight)
    return output


def forward_and_backward(spatial_dims: int, channels: int, size: int, sub_kernel_size: int, is_ours: bool) -> Run:
    torch.manual_seed(0)
    module = MaskedConvolution(spatial_dims, channels, sub_kernel_size).to(device())
    x = torch.randn(1, channels, *[size] * spatial_dims, device=device(), requires_grad=True)
    probe = torch.ones_like(x)
    inputs = (x, *module.parameters())

    def run() -> object:
        return torch.autograd.grad(module(x) if is_ours else shifted_sum(module, x), inputs, probe)

    return run


def rows() -> Iterator[Row]:
    for *case, wanted in CASES:
        spatial_dims, channels, size, sub_kernel_size = case
        module = MaskedConvolution(spatial_dims, channels, sub_kernel_size)
        x = torch.randn(1, channels, *[16] * spatial_dims)
        torch.testing.assert_close(shifted_sum(module, x), module(x), atol=1e-4, rtol=1e-4)
        seconds, share, memory, memory_share = compare_with_memory(forward_and_backward, *case)
        yield Row(
            f"MaskedConvolution {spatial_dims}D, {channels} channels, {size}^{spatial_dims}, k' = {sub_kernel_size}",
            f"sum of {2**spatial_dims} shifted convolutions",
            seconds,
            1 / share,
            wanted,
            memory,
            memory_share,
        )
