"""Synthetic anomalies, against the usual construction in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.measure import Row, compare, device, goal
from ssmctb_monai.transforms import RandAnomaly

CELLS = 4  # of the coarsest octave, the geometric mean of what RandAnomaly draws


def perlin_octave(shape: tuple[int, ...], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Perlin noise as it is mostly written: gradients looked up for every voxel, then blended corner by corner."""
    gradients = rng.normal(size=(*[cells + 1] * len(shape), len(shape)))
    gradients /= np.linalg.norm(gradients, axis=-1, keepdims=True)
    position = np.stack(np.meshgrid(*[np.arange(n) * cells / n for n in shape], indexing="ij"), axis=-1)
    cell = position.astype(int)
    inside = position - cell
    fade = inside**3 * (inside * (inside * 6 - 15) + 10)
    noise = np.zeros(shape)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        gradient = gradients[tuple(np.moveaxis(cell + corner, -1, 0))]
        weight = np.prod(np.where(corner, fade, 1 - fade), axis=-1)
        noise += weight * ((inside - corner) * gradient).sum(axis=-1)
    return noise


def fractal(shape: tuple[int, ...], octaves: int, rng: np.random.Generator) -> np.ndarray:
    noise = sum(0.5**octave * perlin_octave(shape, CELLS * 2**octave, rng) for octave in range(octaves))
    return (noise - noise.mean()) / noise.std()


def in_numpy(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An intensity anomaly as `RandAnomaly` makes it."""
    noise = fractal(image.shape, 3, rng)
    threshold = np.quantile(noise, 1 - rng.uniform(0.005, 0.2))
    blend = np.clip((noise - threshold) / 0.25 + 0.5, 0, 1)
    offset = rng.uniform(0.05, 0.4) * (1 + 0.25 * fractal(image.shape, 2, rng))
    return np.clip(image + blend * offset, 0, 1), noise >= threshold


def rows() -> Iterator[Row]:
    batch = 16 if device().type == "cuda" else 1
    for shape in ((256, 256), (96, 96, 96)):
        rng = np.random.default_rng(0)
        image = rng.random(shape)
        images = torch.as_tensor(image, dtype=torch.float32, device=device()).expand(batch, 1, *shape)
        anomaly = RandAnomaly(len(shape), prob=1.0).set_random_state(0)
        seconds, share = compare(partial(anomaly, images), partial(in_numpy, image, rng))
        yield Row(
            f"Perlin anomaly {len(shape)}D, {shape[0]}^{len(shape)}, a sample",
            "in NumPy, float64, octave by octave",
            seconds / batch,
            batch / share,
            goal("≥ 10", "≥ 100"),
        )
