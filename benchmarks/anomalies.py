"""Synthetic anomalies, against the usual construction in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from benchmarks.measure import Row, compare, device, goal, interleaved
from ssmctb_monai.transforms import RandAnomaly, RandNaturalAnomaly, poisson_blend

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


def by_sparse_solver(destination: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Poisson blending as it is mostly written: a sparse matrix of second differences, factorised for every image."""
    inner = tuple(size - 2 for size in mask.shape)
    second = [sparse.diags([1, -2, 1], [-1, 0, 1], shape=(size, size)) for size in inner]
    laplacian = second[0]
    for other in second[1:]:
        laplacian = sparse.kronsum(other, laplacian)
    change = np.zeros(inner)
    for axis in range(mask.ndim):
        used = np.delete(mask, -1, axis)
        field = used * (np.diff(source, axis=axis) - np.diff(destination, axis=axis))
        crop = tuple(slice(None) if other == axis else slice(1, -1) for other in range(mask.ndim))
        change += np.diff(field[crop], axis=axis)
    result = destination.copy()
    result[(slice(1, -1),) * mask.ndim] += spsolve(laplacian.tocsc(), change.ravel()).reshape(inner)
    return result


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
    for shape in ((224, 224), (32, 32, 32)):
        rng = np.random.default_rng(0)
        pair, mask = rng.random((2, *shape)), np.ones(shape, bool)
        image, source = torch.as_tensor(pair, dtype=torch.float32, device=device())[:, None]
        seconds, share = compare(
            partial(poisson_blend, image, source, torch.as_tensor(mask, device=device())),
            partial(by_sparse_solver, *pair, mask),
        )
        yield Row(
            f"Poisson blending {len(shape)}D, {shape[0]}^{len(shape)}",
            "sparse direct solver of SciPy, float64",
            seconds,
            1 / share,
            goal("≥ 10", "≥ 10"),
        )
    for shape in ((224, 224), (64, 64, 64)):
        images = torch.as_tensor(np.random.default_rng(0).random((2, 1, *shape)), dtype=torch.float32, device=device())
        (times,) = interleaved([partial(RandNaturalAnomaly(len(shape)).set_random_state(0), images)])
        yield Row(
            f"NSA anomaly {len(shape)}D, {shape[0]}^{len(shape)}, a sample",
            "50 ms of the paper's release in 2D",
            median(times) / 2,
            None,
            goal("≤ 10 ms in 2D", ""),
        )
