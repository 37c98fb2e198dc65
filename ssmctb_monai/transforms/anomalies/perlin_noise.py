"""Perlin noise in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from monai.transforms import Randomizable
from torch import Tensor


def perlin_noise(shape: Sequence[int], gradients: Tensor) -> Tensor:
    """Perlin noise from the gradients at its lattice points.

    Perlin, *Improving noise*, SIGGRAPH 2002, https://doi.org/10.1145/566654.566636: at every point the dot products of
    the gradients at the cell's corners with the way from the corner to the point, interpolated by the fade 6t⁵ - 15t⁴ +
    10t³. Both factors separate by axis, so the noise is a product of one small matrix per axis with the lattice.

    Args:
        shape: spatial shape of the noise.
        gradients: shape (spatial dimensions, lattice points of the first axis, …), at least 2 points per axis; the
            lattice spans the shape, first and last point at half a voxel outside it.

    Returns:
        Noise of shape ``shape``, on the device of ``gradients``; 0 at lattice points.
    """
    spatial_dims = len(gradients)
    noise = gradients
    with torch.autocast(gradients.device.type, enabled=False):
        for axis, (size, points) in enumerate(zip(shape, gradients.shape[1:], strict=True)):
            fade, slope = _weights(size, points, gradients.device)
            factors = torch.stack([slope if component == axis else fade for component in range(spatial_dims)])
            # Contracts the lattice's first axis and appends the image axis; the last one sums over the components, too.
            result = "...s" if axis == spatial_dims - 1 else "c...s"
            noise = torch.einsum(f"cp...,csp->{result}", noise, factors.to(gradients))
    return noise


@lru_cache(maxsize=1024)  # small, and the same sizes come again and again
def _weights(size: int, points: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Along an axis, fade and fade times way, from every lattice point (columns) to every voxel (rows)."""
    position = (torch.arange(size, device=device) + 0.5) * ((points - 1) / size)
    way = position[:, None] - torch.arange(points, device=device)
    t = (1 - way.abs()).clamp(min=0)
    fade = t**3 * (t * (6 * t - 15) + 10)
    return fade, fade * way


class RandPerlinNoise(Randomizable):
    """Fractal Perlin noise at a random scale, of mean about 0 and standard deviation 1.

    The coarsest octave has a number of lattice cells per axis that is drawn log-uniformly, for each axis by itself
    within a factor of 2, so that the structures are neither all round nor all stretched; each further octave has half
    the period and ``persistence`` times the amplitude.

    Args:
        cells: least and largest number of lattice cells per axis in the coarsest octave.
        octaves: number of octaves.
        persistence: amplitude of an octave relative to the one before.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> noise = RandPerlinNoise(cells=(2, 8)).set_random_state(0)((64, 64, 64))
    """

    def __init__(self, cells: tuple[float, float] = (1, 32), octaves: int = 3, persistence: float = 0.5) -> None:
        if not 1 <= cells[0] <= cells[1]:
            raise ValueError(f"cells must be two increasing numbers of at least 1, got {cells}.")
        if octaves < 1:
            raise ValueError(f"octaves must be at least 1, got {octaves}.")
        if persistence <= 0:
            raise ValueError(f"persistence must be positive, got {persistence}.")
        self.cells = cells
        self.octaves = octaves
        self.persistence = persistence

    def randomize(self, data: Sequence[int]) -> list[np.ndarray]:
        """Draws the gradients of every octave.

        Args:
            data: spatial shape of the noise.

        Returns:
            Unit vectors per octave, shape (spatial dimensions, lattice points of the first axis, …).
        """
        coarsest = np.exp(self.R.uniform(*np.log(self.cells))) * 2 ** self.R.uniform(-0.5, 0.5, size=len(data))
        coarsest = np.clip(coarsest, *self.cells)
        lattices = []
        for octave in range(self.octaves):
            # More than a lattice point per two voxels would be white noise.
            points = [1 + int(min(np.ceil(c * 2**octave), max(1, n // 2))) for c, n in zip(coarsest, data, strict=True)]
            gradients = self.R.standard_normal((len(data), *points)).astype(np.float32)
            lattices.append(gradients / np.linalg.norm(gradients, axis=0))
        return lattices

    def __call__(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Makes noise.

        Args:
            shape: spatial shape, 2D or 3D.
            device: device of the noise.

        Returns:
            Noise of shape ``shape``, float32.
        """
        noise = torch.zeros(tuple(shape), device=device)
        for octave, gradients in enumerate(self.randomize(shape)):
            noise += self.persistence**octave * perlin_noise(shape, torch.as_tensor(gradients, device=device))
        return (noise - noise.mean()) / noise.std(correction=0).clamp_min(torch.finfo(noise.dtype).tiny)
