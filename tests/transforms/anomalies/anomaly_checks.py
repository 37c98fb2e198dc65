"""What the tests of anomalies share."""

from __future__ import annotations

import torch

SIZES = {2: (31, 26), 3: (17, 14, 15)}


def images(spatial_dims, batch=4, channels=2, seed=0):
    """Batch of images in [0, 1] and of brains, each another."""
    generator = torch.Generator().manual_seed(seed)
    size = SIZES[spatial_dims]
    image = torch.rand(batch, channels, *size, generator=generator)
    brain = torch.zeros(batch, 1, *size, dtype=torch.uint8)
    for index in range(batch):
        brain[(index, 0, *[slice(2 + index % 3, -3)] * spatial_dims)] = 1
    return image, brain
