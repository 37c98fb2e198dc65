"""What several test files of the blocks share: checks of exported modules and plain reference implementations."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.networks.blocks import TransformerLayer

SIZES = {2: (9, 7), 3: (7, 6, 5)}  # small, and different along every axis


def random_input(spatial_dims: int, channels: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, channels, *SIZES[spatial_dims], dtype=dtype)


def assert_script_save(module: nn.Module, x: Tensor) -> None:
    """Scripted, saved and loaded again, the module in evaluation mode gives what it gives in eager mode."""
    module.eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), module(x))


def assert_exports(module: nn.Module, x: Tensor, other: Tensor) -> None:
    """``torch.export`` with dynamic batch and spatial sizes gives eager results, at another size too."""
    module.eval()
    dynamic = {axis: torch.export.Dim.AUTO for axis in range(x.dim()) if axis != 1}
    exported = torch.export.export(module, (x,), dynamic_shapes=(dynamic,)).module()
    with torch.no_grad():
        for image in (x, other):
            torch.testing.assert_close(exported(image), module(image))


def assert_compiles(module: nn.Module, x: Tensor) -> None:
    """``torch.compile`` gives eager values, and eager gradients of every parameter and of the input."""
    torch._dynamo.reset()
    x = x.requires_grad_()
    inputs = [x, *module.parameters()]
    expected = module(x)
    probe = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), inputs)
    output = torch.compile(module)(x)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    gradients = torch.autograd.grad((output * probe).sum(), inputs)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-3)


def assert_every_parameter_matters(module: nn.Module, x: Tensor) -> None:
    """Every parameter changes the output, and so has a gradient other than 0."""
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def gradcheck_with_parameters(module: nn.Module, x: Tensor) -> bool:
    """Numerical against analytical gradient of the input and of all parameters, in float64."""
    module = module.double()
    assert module(x.double()).count_nonzero() > x.numel() / 2  # not cut off by ReLU
    names = [name for name, _ in module.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]

    def function(image: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (image,))

    return torch.autograd.gradcheck(function, (x.double().requires_grad_(), *values))


def corners(spatial_dims: int) -> Iterator[tuple[int, ...]]:
    """Corners of a kernel; 0 is the low and 1 the high side of an axis."""
    return itertools.product((0, 1), repeat=spatial_dims)


def tap_offsets(sub_kernel_size: int, dilation: int, mask_size: int) -> list[int]:
    """Where the taps lie along one axis, from the masked position: k = 2k' + 2d + |M|."""
    first = mask_size // 2 + dilation + 1  # the tap next to the gap
    high = list(range(first, first + sub_kernel_size))
    return [-offset for offset in reversed(high)] + high


def sum_of_shifts(
    x: Tensor, sub_kernels: Mapping[tuple[int, ...], Tensor], biases: list[Tensor], dilation: int, mask_size: int = 1
) -> Tensor:
    """Masked convolution as 4 or 8 convolutions of shifted crops of the padded input, summed."""
    dims = x.dim() - 2
    convolve = F.conv2d if dims == 2 else F.conv3d
    size = next(iter(sub_kernels.values())).shape[-1]
    field = 2 * size + 2 * dilation + mask_size
    padded = F.pad(x, [(field - 1) // 2] * (2 * dims))
    total = sum(bias.view(-1, *[1] * dims) for bias in biases)
    for corner, sub_kernel in sub_kernels.items():
        cut = field - size
        crop = tuple(
            slice(cut, None) if high else slice(None, length - cut)
            for high, length in zip(corner, padded.shape[2:], strict=True)
        )
        total = total + convolve(padded[(..., *crop)], sub_kernel)
    return total


def plain_pool(channel: np.ndarray, pool_size: int) -> np.ndarray:
    """Mean of each of ``pool_size`` parts per axis, row-major; parts overlap by one where the size is no multiple."""
    parts = [
        [slice(i * length // pool_size, -(-(i + 1) * length // pool_size)) for i in range(pool_size)]
        for length in channel.shape
    ]
    grid = np.ndindex(*[pool_size] * channel.ndim)
    return np.array([channel[tuple(parts[axis][i] for axis, i in enumerate(cell))].mean() for cell in grid])


def plain_attention(tokens: np.ndarray, to_qkv: np.ndarray, num_heads: int) -> np.ndarray:
    """Sum over the heads of softmax(QKᵀ/√d)V, one number after the other. ``tokens``: (number, d)."""
    number, dim = tokens.shape
    query_maps, key_maps, value_maps = to_qkv.reshape(3, num_heads, dim, dim)
    output = np.zeros_like(tokens)
    for head in range(num_heads):
        queries = [query_maps[head] @ token for token in tokens]
        keys = [key_maps[head] @ token for token in tokens]
        values = [value_maps[head] @ token for token in tokens]
        for i in range(number):
            scores = [math.exp(float(queries[i] @ keys[j]) / math.sqrt(dim)) for j in range(number)]
            for j in range(number):
                output[i] += scores[j] / sum(scores) * values[j]
    return output


def plain_norm(tokens: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    rows = [(row - row.mean()) / math.sqrt(row.var() + 1e-5) * scale + shift for row in tokens]
    return np.stack(rows)


def plain_gelu(values: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: value * 0.5 * (1 + math.erf(value / math.sqrt(2))))(values)


def plain_layer(tokens: np.ndarray, layer: TransformerLayer) -> np.ndarray:
    """P = MHA(norm(T)) + T, then MLP(norm(P)) + P."""
    state = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    normed = plain_norm(tokens, state["norm1.weight"], state["norm1.bias"])
    attended = plain_attention(normed, state["attention.to_qkv.weight"], layer.attention.num_heads) + tokens
    normed = plain_norm(attended, state["norm2.weight"], state["norm2.bias"])
    hidden = plain_gelu(normed @ state["mlp.linear1.weight"].T + state["mlp.linear1.bias"])
    return hidden @ state["mlp.linear2.weight"].T + state["mlp.linear2.bias"] + attended


def randomised(module: nn.Module) -> nn.Module:
    """Norms too get values other than 1 and 0, so that a forgotten one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module.double()


def golden_folder() -> Path:
    """Cases made with the authors' releases; beside the data folder, and absent from the repository."""
    repository = Path(__file__).parents[3]
    data = Path(os.environ.get("SSMCTB_DATA") or repository.parent / "shared" / "data")
    return data.parent / "golden"
