"""Time of `MaskedConvolution`, forward and backward, against other ways to compute the same.

Prints each as a ratio to the time of `MaskedConvolution` in the same run: above 1 is slower. The reference is the sum
of 4 (2D) or 8 (3D) convolutions of shifted crops. For k' > 1 two alternatives stand beside it: one convolution of the
concatenated shifts, and one convolution with a dense kernel that is zero between its corners.

    python benchmarks/masked_convolution.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from ssmctb_monai.networks.blocks import MaskedConvolution

THREADS = torch.get_num_threads()
ROUNDS, MIN_SECONDS = 3, 0.4  # interleaved rounds: what else runs on the machine touches all candidates alike

# spatial_dims, channels, size, sub_kernel_size
CASES = [(2, 64, 256, 1), (3, 32, 64, 1), (2, 64, 256, 2), (2, 64, 256, 3), (3, 32, 48, 2), (3, 32, 48, 3)]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0) -> Tensor:
    return (F.conv2d if x.dim() == 4 else F.conv3d)(x, weight, bias, padding=padding)


def corners(module: MaskedConvolution) -> list[tuple[int, ...]]:
    return list(itertools.product((0, 1), repeat=module.spatial_dims))


def sub_kernel(module: MaskedConvolution, corner: tuple[int, ...]) -> Tensor:
    size = module.sub_kernel_size
    return module.weight[(..., *(slice(side * size, (side + 1) * size) for side in corner))]


def shifts(module: MaskedConvolution, x: Tensor) -> list[Tensor]:
    padding = (module.receptive_field - 1) // 2
    padded = F.pad(x, [padding] * (2 * module.spatial_dims))
    cut = module.receptive_field - module.sub_kernel_size
    return [padded[(..., *(slice(cut, None) if side else slice(-cut) for side in c))] for c in corners(module)]


def shifted_sum(module: MaskedConvolution, x: Tensor) -> Tensor:
    parts = [
        convolve(image, sub_kernel(module, corner), module.bias if i == 0 else None)
        for i, (corner, image) in enumerate(zip(corners(module), shifts(module, x), strict=True))
    ]
    return sum(parts[1:], start=parts[0])


def concatenated(module: MaskedConvolution, x: Tensor) -> Tensor:
    weight = torch.cat([sub_kernel(module, corner) for corner in corners(module)], dim=1)
    return convolve(torch.cat(shifts(module, x), dim=1), weight, module.bias)


def dense(module: MaskedConvolution, x: Tensor) -> Tensor:
    field, size = module.receptive_field, module.sub_kernel_size
    weight = module.weight.new_zeros(*module.weight.shape[:2], *[field] * module.spatial_dims)
    for corner in corners(module):
        ends = (slice(field - size, None) if side else slice(size) for side in corner)
        weight[(..., *ends)] = sub_kernel(module, corner)
    return convolve(x, weight, module.bias, padding=(field - 1) // 2)


def timer(method: Callable[[MaskedConvolution, Tensor], Tensor], module: MaskedConvolution, x: Tensor) -> Timer:
    inputs = (x, *module.parameters())
    probe = torch.ones_like(x)
    run = lambda: torch.autograd.grad(method(module, x), inputs, probe)  # noqa: E731
    return Timer("run()", globals={"run": run}, num_threads=THREADS)


def main() -> None:
    print(f"torch {torch.__version__}, {THREADS} threads, CPU; forward + backward, median over all rounds")
    print(f"{'case':<28}{'this':>10}{'shifted sum':>14}{'concatenated':>14}{'dense zeros':>14}")
    for spatial_dims, channels, size, sub_kernel_size in CASES:
        torch.manual_seed(0)
        module = MaskedConvolution(spatial_dims, channels, sub_kernel_size)
        x = torch.randn(1, channels, *[size] * spatial_dims, requires_grad=True)
        methods = {"this": lambda module, x: module(x), "shifted sum": shifted_sum}
        if sub_kernel_size > 1:
            methods |= {"concatenated": concatenated, "dense zeros": dense}
        with torch.no_grad():
            expected = module(x)
            for method in methods.values():
                torch.testing.assert_close(method(module, x), expected, atol=1e-3, rtol=1e-3)
        timers = {name: timer(method, module, x) for name, method in methods.items()}
        times: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(ROUNDS):
            for name, candidate in timers.items():
                times[name] += candidate.blocked_autorange(min_run_time=MIN_SECONDS).times
        medians = {name: torch.tensor(values).median().item() for name, values in times.items()}
        case = f"{spatial_dims}D c={channels} {size}^{spatial_dims} k'={sub_kernel_size}"
        this = medians.pop("this")
        ratios = "".join(f"{median / this:>13.2f}x" for median in medians.values())
        print(f"{case:<28}{1e3 * this:>7.0f} ms{ratios}", flush=True)


if __name__ == "__main__":
    main()
