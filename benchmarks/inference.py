"""Inference on a whole volume, against MONAI's sliding window with its defaults."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from scipy import ndimage

from benchmarks.measure import Row, Run, device, interleaved
from ssmctb_monai.inferers import AutocastInferer, ForegroundInferer
from ssmctb_monai.networks.nets import DRAEM

SHAPE = (240, 240, 155)
WINDOWS = {"roi_size": (32, 32, 32), "overlap": 0.5, "mode": "gaussian"}


def scan() -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth noise in an ellipsoid of the brain's size, 0 around it; and the ellipsoid."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), 2)
    grid = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in SHAPE), indexing="ij", sparse=True)
    brain = (grid[0] / 0.55) ** 2 + (grid[1] / 0.7) ** 2 + (grid[2] / 0.85) ** 2 < 1
    image = np.where(brain, 0.5 + 0.1 * noise / noise.std(), 0).clip(0, 1)
    return torch.from_numpy(image.astype(np.float32))[None, None], torch.from_numpy(brain)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    image, brain = scan()
    image = image.to(device())
    network = DRAEM(3, reconstructive_width=8, discriminative_width=8).to(device()).eval()
    ours = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    maps: dict[str, torch.Tensor] = {}

    def run(name: str, inferer: object, network: torch.nn.Module) -> Run:
        def call() -> None:
            with torch.inference_mode():
                maps[name] = inferer(image, network)

        return call

    windows = ForegroundInferer(SlidingWindowInferer(sw_batch_size=8, **WINDOWS))
    runs = [
        run("reference", SlidingWindowInferer(**WINDOWS), network),
        run("as in the bundles", AutocastInferer(windows), ours),
        run("in bfloat16", AutocastInferer(windows, amp=True), ours),
    ]
    (reference,), *times = interleaved(runs, rounds=1, warm_up=False)  # a call of the reference takes minutes
    for (seconds,), name in zip(times, list(maps)[1:], strict=True):
        difference = (maps[name].float() - maps["reference"]).abs()[0, 0].cpu()[brain].max().item()
        yield Row(
            f"inference on {'x'.join(map(str, SHAPE))}, windows of 32^3, {name}",
            "MONAI's SlidingWindowInferer, contiguous, one window at a time",
            seconds,
            reference / seconds,
            "≥ 3",
            note=f"largest difference in the brain {difference:.1e}",
        )
