"""What a GPU brings: tests that need one, two processes without NCCL, and training and inference in several ways.

The ways are precision, layout and compilation; behind them come the rows of the table that run on any device.

python -m benchmarks.gpu [--small]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module

import torch
from torch import nn

from benchmarks.measure import HEAD, Row, Run, compare, device
from ssmctb_monai.losses import DRAEMLoss, SelfSupervisedLoss
from ssmctb_monai.networks.nets import DRAEM

TESTS = [
    "tests/networks/test_insertion.py",
    "tests/networks/blocks/test_released.py",
    "tests/integration/test_block_loss.py",
    "tests/transforms/anomalies/test_rand_anomaly.py",
    "tests/inferers/test_autocast.py",
]
ON_ANY_DEVICE = ["masked_convolution", "blocks", "anomalies", "cell_masks"]
SIZES = {2: (64, 256), 3: (8, 96)}  # batch and side
SMALL = {2: (2, 64), 3: (2, 32)}
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
VARIANTS = {  # half precision, channels last, compiled; the first is the reference
    "float32": (False, False, False),
    "float32, channels last": (False, True, False),
    "bfloat16": (True, False, False),
    "bfloat16, channels last": (True, True, False),
    "bfloat16, channels last, compiled": (True, True, True),
}


def tests() -> None:
    """Runs the tests that need a GPU, and those beside them; raises where one fails."""
    names = "gpu or cuda or device or float16 or autocast"
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "", "-k", names, *TESTS], check=True)


def two_processes() -> None:
    """Trains an epoch of brats3d on the demo data by two processes over gloo; raises where that fails."""
    files = str([f"bundles/brats3d/{name}.json" for name in ("train", "configs/multi_gpu_train")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", "--config_file", files, "--backend", "gloo", "--val_interval", "1"]
    command += ["--train#trainer#max_epochs", "1", "--batch_size", "2", "--validation_share", "2"]
    with tempfile.TemporaryDirectory() as folder:
        places = [word for name in ("ckpt", "output", "cache") for word in (f"--{name}_dir", f"{folder}/{name}")]
        subprocess.run([*command, *places], check=True)


def call(spatial_dims: int, size: tuple[int, int], variant: str, is_training: bool) -> Run:
    """Makes a training step, or the inference on a batch.

    Args:
        spatial_dims: 2 or 3.
        size: batch and side.
        variant: one of `VARIANTS`.
        is_training: whether it is a step.
    """
    in_half, channels_last, compiled = VARIANTS[variant]
    torch.manual_seed(0)
    layout = LAYOUTS[spatial_dims] if channels_last else torch.contiguous_format
    image = torch.rand(size[0], 1, *[size[1]] * spatial_dims, device=device()).to(memory_format=layout)
    network = DRAEM(spatial_dims, block_in="reconstructive").to(device(), memory_format=layout).train(is_training)
    loss = SelfSupervisedLoss(DRAEMLoss(spatial_dims, 11 if spatial_dims == 2 else 5), network)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=True)
    run: nn.Module = torch.compile(network) if compiled else network
    targets = (image, (image > 0.9).float())

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device().type, torch.bfloat16, enabled=in_half):
            value = loss(run(image), targets)
        value.backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), torch.autocast(device().type, torch.bfloat16, enabled=in_half):
            run(image)

    return step if is_training else infer


def rows(sizes: dict[int, tuple[int, int]], min_seconds: float) -> Iterator[Row]:
    """Measures every variant against the first.

    Args:
        sizes: batch and side, by the number of spatial dimensions.
        min_seconds: time that each call gets in each round.
    """
    first, *others = VARIANTS
    for spatial_dims, size in sizes.items():
        for what, is_training in (("training step", True), ("inference", False)):
            reference = call(spatial_dims, size, first, is_training)
            for variant in others:
                ours = call(spatial_dims, size, variant, is_training)
                seconds, share = compare(ours, reference, rounds=3, min_seconds=min_seconds)
                shape = f"{size[0]}x1x{'x'.join([str(size[1])] * spatial_dims)}"
                yield Row(f"DRAEM {spatial_dims}D, {what}, {shape}, {variant}", first, seconds, 1 / share, "≥")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small images and the first part alone, as on a CPU")
    is_small = parser.parse_args().small
    tests()
    two_processes()
    print(f"\n{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}\n\n{HEAD}", flush=True)
    found = [rows(SMALL if is_small else SIZES, 0.1 if is_small else 1.0)]
    found += [import_module(f"benchmarks.{name}").rows() for name in ON_ANY_DEVICE if not is_small]
    for part in found:
        for row in part:
            print(row, flush=True)


if __name__ == "__main__":
    main()
