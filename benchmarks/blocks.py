"""Whole blocks: against what they replace, in DRAEM, and in MONAI's networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import BasicUNet, MaskedAutoEncoderViT, SegResNet, SwinUNETR, UNet
from torch import Tensor, nn

from benchmarks.measure import Row, Run, compare, compare_with_memory, device, goal
from ssmctb_monai.losses import block_reconstruction_loss
from ssmctb_monai.networks import insert_block
from ssmctb_monai.networks.blocks import SSMCTB
from ssmctb_monai.networks.nets import DRAEM

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
UNET = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2)}

# name, network, shape of the input
NETWORKS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("UNet 2D 256^2, batch 4", lambda: UNet(2, 1, 2, **UNET), (4, 1, 256, 256)),
    ("UNet 3D 64^3", lambda: UNet(3, 1, 2, **UNET), (1, 1, 64, 64, 64)),
    ("BasicUNet 2D 256^2, batch 4", lambda: BasicUNet(2), (4, 1, 256, 256)),
    ("BasicUNet 3D 64^3", lambda: BasicUNet(3), (1, 1, 64, 64, 64)),
    ("SegResNet 3D 64^3", lambda: SegResNet(3, init_filters=16), (1, 1, 64, 64, 64)),
    ("SwinUNETR 3D 64^3", lambda: SwinUNETR(1, 2), (1, 1, 64, 64, 64)),
    (
        "MaskedAutoEncoderViT 2D 96^2, patch 8, batch 16",
        lambda: MaskedAutoEncoderViT(
            1, 96, 8, 128, 512, 4, 4, decoder_hidden_size=64, decoder_mlp_dim=256, decoder_num_heads=4, spatial_dims=2
        ),
        (16, 1, 96, 96),
    ),
]


def block_or_convolution(spatial_dims: int, channels: int, size: int, channels_last: bool, is_block: bool) -> Run:
    """Forward and backward pass, the block's loss included."""
    torch.manual_seed(0)
    if is_block:
        module: nn.Module = SSMCTB(spatial_dims, channels)
    else:
        module = Convolution(spatial_dims, channels, channels, adn_ordering="NA", norm="batch", act="relu", bias=False)
    layout = LAYOUTS[spatial_dims] if channels_last else torch.contiguous_format
    module = module.to(device(), memory_format=layout)
    x = torch.randn(1, channels, *[size] * spatial_dims, device=device()).to(memory_format=layout).requires_grad_()
    probe = torch.ones_like(x)

    def run() -> object:
        output = module(x)
        outputs = (output, module.reconstruction_loss) if is_block else (output,)
        return torch.autograd.grad(outputs, (x, *module.parameters()), (probe, torch.tensor(0.1))[: len(outputs)])

    return run


def inference(network: nn.Module, x: Tensor) -> Run:
    network.eval()

    def run() -> None:
        with torch.inference_mode():
            network(x)

    return run


def training_step(network: nn.Module, x: Tensor) -> Run:
    """Forward pass, loss (the block's included) and backward pass."""
    network.train()

    def run() -> None:
        network.zero_grad()
        output = network(x)
        output = output if isinstance(output, Tensor) else output[0]
        (output.square().mean() + 0.1 * block_reconstruction_loss(network)).backward()

    return run


def replaced_convolution() -> Iterator[Row]:
    for spatial_dims, channels, size in ((2, 64, 256), (3, 32, 64)):
        for channels_last in (False, True):
            case = (spatial_dims, channels, size, channels_last)
            seconds, share, memory, memory_share = compare_with_memory(block_or_convolution, *case)
            layout = "channels last" if channels_last else "contiguous"
            yield Row(
                f"SSMCTB {spatial_dims}D, {channels} channels, {size}^{spatial_dims}, {layout}",
                f"convolution of 3^{spatial_dims}, batch norm, ReLU",
                seconds,
                share,
                "≤ 1.0",
                memory,
                memory_share,
            )


def draem() -> Iterator[Row]:
    for name, arguments, shape in (
        ("2D, widths 128 and 64, 256^2", (2, 1, 128, 64), (1, 1, 256, 256)),
        ("3D, default widths, 64^3", (3,), (1, 1, 64, 64, 64)),
    ):
        x = torch.rand(shape, device=device())
        ours, theirs = (inference(DRAEM(*arguments, block=block).to(device()), x) for block in ("ssmctb", None))
        seconds, share = compare(ours, theirs, min_seconds=1)
        yield Row(
            f"DRAEM + SSMCTB, inference, {name}", "DRAEM without block", seconds, share, goal("≤ 1.01", "≤ 1.005")
        )


def inserted() -> Iterator[Row]:
    for name, make, shape in NETWORKS:
        x = torch.rand(shape, device=device())
        bare = make().to(device())
        blocked = insert_block(make().to(device()), "ssmctb", sample=x)
        sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (bare, blocked)]
        for kind, make_run in {"inference": inference, "training step": training_step}.items():
            seconds, share = compare(make_run(blocked, x), make_run(bare, x), rounds=3)
            note = f"{sizes[1] / sizes[0]:.2f} times the parameters"
            yield Row(f"SSMCTB in {name}, {kind}", "the network without block", seconds, share, "≤", note=note)


def rows() -> Iterator[Row]:
    yield from replaced_convolution()
    yield from draem()
    yield from inserted()
