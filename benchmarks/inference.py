"""Inference on a whole volume as in the bundle, against MONAI's sliding window with its defaults."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from scipy import ndimage

from benchmarks.measure import Row, Run, compare, device
from ssmctb_monai.inferers import window_inferer
from ssmctb_monai.networks.nets import DRAEM

SHAPE = (240, 240, 155)
SHAPE_2_MM = (120, 120, 78)
ROI_SIZE = (64, 96, 64)


def scan(shape: Sequence[int] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth noise in an ellipsoid of the brain's size, 0 around it; and the ellipsoid."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape).astype(np.float32), 2)
    grid = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape), indexing="ij", sparse=True)
    brain = (grid[0] / 0.55) ** 2 + (grid[1] / 0.7) ** 2 + (grid[2] / 0.85) ** 2 < 1
    image = np.where(brain, 0.5 + 0.1 * noise / noise.std(), 0).clip(0, 1)
    return torch.from_numpy(image.astype(np.float32))[None, None], torch.from_numpy(brain)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    image, brain = scan(SHAPE_2_MM)
    image = image.to(device())
    network = DRAEM(3, reconstructive_width=8, discriminative_width=8).to(device()).eval()
    ours = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    maps: dict[str, torch.Tensor] = {}

    def run(name: str, inferer: object, network: torch.nn.Module) -> Run:
        def call() -> None:
            with torch.inference_mode():
                maps[name] = inferer(image, network)

        return call

    seconds, share = compare(
        run("ours", window_inferer(3, ROI_SIZE), ours),
        run("reference", SlidingWindowInferer(ROI_SIZE, overlap=0.5, mode="gaussian"), network),
        rounds=3,
        warm_up=False,
    )
    difference = (maps["ours"] - maps["reference"]).abs()[0, 0].cpu()[brain].max().item()
    yield Row(
        f"inference on {'x'.join(map(str, SHAPE_2_MM))}, windows of {'x'.join(map(str, ROI_SIZE))}, as in brats3d",
        "MONAI's SlidingWindowInferer, contiguous, one window at a time",
        seconds,
        1 / share,
        "≥ 3",
        note=f"largest difference in the brain {difference:.1e}",
    )
