"""What a block costs in MONAI's networks: parameters, inference and a training step.

Prints the time with SSMCTB in the default place as a ratio to that of the network without block in the same run: above
1 is slower. A training step is the forward pass, the loss (the block's included) and the backward pass.

    python benchmarks/insertion.py
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from monai.networks.nets import BasicUNet, MaskedAutoEncoderViT, SegResNet, SwinUNETR, UNet
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from ssmctb_monai.losses import block_reconstruction_loss
from ssmctb_monai.networks import insert_block

THREADS = torch.get_num_threads()
ROUNDS, MIN_SECONDS = 3, 0.4  # interleaved rounds: what else runs on the machine touches all candidates alike
CHANNELS, STRIDES = (16, 32, 64, 128), (2, 2, 2)

# name, network, shape of the input
CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("UNet 2D 256^2", lambda: UNet(2, 1, 2, CHANNELS, STRIDES), (4, 1, 256, 256)),
    ("UNet 3D 64^3", lambda: UNet(3, 1, 2, CHANNELS, STRIDES), (1, 1, 64, 64, 64)),
    ("BasicUNet 2D 256^2", lambda: BasicUNet(2), (4, 1, 256, 256)),
    ("BasicUNet 3D 64^3", lambda: BasicUNet(3), (1, 1, 64, 64, 64)),
    ("SegResNet 3D 64^3", lambda: SegResNet(3, init_filters=16), (1, 1, 64, 64, 64)),
    ("SwinUNETR 3D 64^3", lambda: SwinUNETR(1, 2), (1, 1, 64, 64, 64)),
    (
        "MAE 2D 96^2, patch 8",
        lambda: MaskedAutoEncoderViT(
            1, 96, 8, 128, 512, 4, 4, decoder_hidden_size=64, decoder_mlp_dim=256, decoder_num_heads=4, spatial_dims=2
        ),
        (16, 1, 96, 96),
    ),
]


def first(output: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def inference(network: nn.Module, x: Tensor) -> None:
    network.eval()
    with torch.no_grad():
        network(x)


def training_step(network: nn.Module, x: Tensor) -> None:
    network.train()
    network.zero_grad()
    (first(network(x)).square().mean() + 0.1 * block_reconstruction_loss(network)).backward()


def ratio(run: Callable[[nn.Module, Tensor], None], bare: nn.Module, blocked: nn.Module, x: Tensor) -> float:
    timers = [
        Timer("run(network, x)", globals={"run": run, "network": network, "x": x}, num_threads=THREADS)
        for network in (bare, blocked)
    ]
    rounds = [[timer.blocked_autorange(min_run_time=MIN_SECONDS).times for timer in timers] for _ in range(ROUNDS)]
    without, with_block = (median(time for each in times for time in each) for times in zip(*rounds, strict=True))
    return with_block / without


def main() -> None:
    print(f"torch {torch.__version__}, {THREADS} threads, CPU; median over all rounds; ratio to the network alone")
    print(f"{'network':<24}{'parameters':>12}{'inference':>12}{'training step':>15}")
    for name, make, shape in CASES:
        x = torch.rand(shape)
        bare, blocked = make(), insert_block(make(), "ssmctb", sample=x)
        sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (bare, blocked)]
        times = [ratio(run, bare, blocked, x) for run in (inference, training_step)]
        print(f"{name:<24}{sizes[1] / sizes[0]:>11.3f}x{times[0]:>11.2f}x{times[1]:>14.2f}x", flush=True)


if __name__ == "__main__":
    main()
