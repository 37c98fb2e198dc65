"""Shapes of synthetic anomalies."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple_rep
from torch import Tensor

from ssmctb_monai.checks import check_ranges
from ssmctb_monai.transforms.anomalies.parts import AnomalyShape, drawn_voxel
from ssmctb_monai.transforms.anomalies.perlin_noise import RandPerlinNoise


class SizedShape(AnomalyShape):
    """Shape of a drawn size: the highest values of a random field, as many as the size asks for.

    Args:
        coverage: least and largest share of the voxels inside that are anomalous, drawn log-uniformly; at least one
            voxel is.
        volume: least and largest volume in mm³ (in 2D, area in mm²), drawn log-uniformly in place of the coverage, the
            largest of which it does not exceed.
        spacing: size of a voxel in mm, one for all axes or one per axis; with 1 the volume is in voxels.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self,
        coverage: tuple[float, float] = (0.005, 0.2),
        volume: tuple[float, float] | None = None,
        spacing: float | tuple[float, ...] = 1.0,
    ) -> None:
        check_ranges(1, coverage=coverage)
        if volume is not None:
            check_ranges(np.inf, volume=volume)
        if np.min(spacing) <= 0:
            raise ValueError(f"spacing must be positive, got {spacing}.")
        self.coverage = coverage
        self.volume = volume
        self.spacing = spacing

    @abstractmethod
    def field(self, inside: Tensor) -> Tensor:
        """Draws a field whose highest values are the anomaly.

        Args:
            inside: where the anomaly may lie, shape (…), bool, not empty.

        Returns:
            Field of the same shape, float32.
        """

    def _voxels(self, inside: Tensor) -> int:
        """Draws the number of voxels, from 1 to all that are inside."""
        available = int(inside.count_nonzero())
        if self.volume is None:
            wanted = np.exp(self.R.uniform(*np.log(self.coverage))) * available
        else:
            voxel = np.prod(ensure_tuple_rep(self.spacing, inside.dim()))
            wanted = min(np.exp(self.R.uniform(*np.log(self.volume))) / voxel, self.coverage[1] * available)
        return max(1, round(wanted))

    def __call__(self, image: Tensor, inside: Tensor) -> Tensor:
        """Draws a shape, as `AnomalyShape` describes it."""
        field = self.field(inside)
        voxels = self._voxels(inside)
        values = field[inside]
        return field - values.kthvalue(values.numel() + 1 - voxels).values


class PerlinShape(SizedShape):
    """Fractal Perlin noise above a threshold: one or several parts with ragged outlines.

    Zavrtanik et al., *DRAEM*, ICCV 2021, https://arxiv.org/abs/2108.07610, in 2D and 3D. Here the threshold is the
    noise's quantile inside the brain that gives a drawn size, so no shape is empty. Levels are in standard deviations
    of the noise.

    Args:
        cells: least and largest number of cells per axis of the image, of the coarsest noise.
        coverage: least and largest share of the voxels inside that are anomalous, drawn log-uniformly.
        volume: least and largest volume in mm³ in place of the coverage; see `SizedShape`.
        spacing: size of a voxel in mm.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> level = PerlinShape(coverage=(0.01, 0.5)).set_random_state(0)(image, inside)
        >>> mask = (level >= 0) & inside
    """

    def __init__(
        self,
        cells: tuple[float, float] = (1, 8),
        coverage: tuple[float, float] = (0.005, 0.2),
        volume: tuple[float, float] | None = None,
        spacing: float | tuple[float, ...] = 1.0,
    ) -> None:
        super().__init__(coverage, volume, spacing)
        self.noise = RandPerlinNoise(cells)

    def field(self, inside: Tensor) -> Tensor:
        """Draws noise, as `SizedShape` describes it."""
        return self.noise(inside.shape, inside.device)


class _CentredShape(SizedShape):
    """Shape around a voxel, with axes of different lengths.

    Levels are logarithms of the size at which the border would be here, relative to where it is, so that a soft edge is
    as wide as the shape is large.
    """

    def __init__(
        self,
        aspect: float,
        rotate: bool,
        coverage: tuple[float, float],
        volume: tuple[float, float] | None,
        spacing: float | tuple[float, ...],
    ) -> None:
        super().__init__(coverage, volume, spacing)
        if aspect < 1:
            raise ValueError(f"aspect must be at least 1, got {aspect}.")
        self.aspect = aspect
        self.rotate = rotate

    @abstractmethod
    def _distance(self, places: Tensor) -> Tensor:
        """Distances of places, shape (axes, …), from the origin, in multiples of the shape's size."""

    def field(self, inside: Tensor) -> Tensor:
        """Draws centre, axes and orientation, as `SizedShape` describes it."""
        dims = inside.dim()
        # Between voxels, or many of them would be at the same distance.
        centre = drawn_voxel(inside, self.R) + self.R.uniform(-0.5, 0.5, size=dims)
        lengths = np.exp(self.R.uniform(0, np.log(self.aspect), size=dims))
        turn = np.linalg.qr(self.R.standard_normal((dims, dims)))[0] if self.rotate else np.eye(dims)
        matrix = turn / lengths[:, None] * ensure_tuple_rep(self.spacing, dims)
        return -self._distance(turned_places(inside, centre, matrix)).log()


def turned_places(inside: Tensor, centre: np.ndarray, matrix: np.ndarray) -> Tensor:
    """Places of all voxels as seen from a centre, turned and scaled.

    Args:
        inside: tensor of the image's shape (…), on its device.
        centre: in voxels, shape (axes).
        matrix: what the ways from the centre are multiplied with, shape (axes, axes).

    Returns:
        Places, shape (axes, …), float32.
    """
    axes = [torch.arange(size, device=inside.device) - c for size, c in zip(inside.shape, centre, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).float()
    with torch.autocast(inside.device.type, enabled=False):
        return torch.tensordot(torch.as_tensor(matrix, device=inside.device).float(), places, 1)


class EllipsoidShape(_CentredShape):
    """Ellipsoid (in 2D, ellipse) around a voxel drawn inside; what would lie outside is made up for by its size.

    Args:
        aspect: largest ratio of two of its axes; each length is drawn log-uniformly up to this.
        rotate: whether its axes have any orientation, instead of those of the image.
        coverage: least and largest share of the voxels inside that are anomalous, drawn log-uniformly.
        volume: least and largest volume in mm³ in place of the coverage; see `SizedShape`.
        spacing: size of a voxel in mm.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> level = EllipsoidShape(volume=(50, 200_000), spacing=2.0).set_random_state(0)(image, inside)
    """

    def __init__(
        self,
        aspect: float = 3.0,
        rotate: bool = True,
        coverage: tuple[float, float] = (0.005, 0.2),
        volume: tuple[float, float] | None = None,
        spacing: float | tuple[float, ...] = 1.0,
    ) -> None:
        super().__init__(aspect, rotate, coverage, volume, spacing)

    def _distance(self, places: Tensor) -> Tensor:
        return places.square().sum(0).sqrt()  # several times as fast as a norm along the first axis


class BoxShape(_CentredShape):
    """Box (in 2D, rectangle) around a voxel drawn inside; whole rows of voxels, so a little larger than drawn.

    Args:
        aspect: largest ratio of two of its axes; each length is drawn log-uniformly up to this.
        rotate: whether its axes have any orientation, instead of those of the image.
        coverage: least and largest share of the voxels inside that are anomalous, drawn log-uniformly.
        volume: least and largest volume in mm³ in place of the coverage; see `SizedShape`.
        spacing: size of a voxel in mm.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> level = BoxShape(coverage=(0.02, 0.15)).set_random_state(0)(image, inside)
    """

    def __init__(
        self,
        aspect: float = 3.0,
        rotate: bool = False,
        coverage: tuple[float, float] = (0.005, 0.2),
        volume: tuple[float, float] | None = None,
        spacing: float | tuple[float, ...] = 1.0,
    ) -> None:
        super().__init__(aspect, rotate, coverage, volume, spacing)

    def _distance(self, places: Tensor) -> Tensor:
        return places.abs().amax(0)


class TissueShape(AnomalyShape):
    """Another shape within one tissue: where the image, smoothed over 3 voxels, is as bright as at a drawn voxel.

    Args:
        shape: the shape; its coverage counts within the tissue.
        width: largest difference in brightness from the drawn voxel.
        channel: channel of the image.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> level = TissueShape(PerlinShape(), width=0.05).set_random_state(0)(image, inside)
    """

    def __init__(self, shape: AnomalyShape, width: float = 0.1, channel: int = 0) -> None:
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}.")
        self.shape = shape
        self.width = width
        self.channel = channel

    def __call__(self, image: Tensor, inside: Tensor) -> Tensor:
        """Draws a shape, as `AnomalyShape` describes it; the level is -∞ outside the tissue."""
        pool = F.avg_pool2d if inside.dim() == 2 else F.avg_pool3d
        sums = torch.stack([image[self.channel] * inside, inside])[None].float()
        for axis in range(inside.dim()):  # one by one, which takes fewer operations
            window = [3 if axis == other else 1 for other in range(inside.dim())]
            sums = pool(sums, window, 1, [size // 2 for size in window])
        smooth = sums[0, 0] / sums[0, 1]
        values = smooth[inside]
        tissue = inside & ((smooth - values[self.R.randint(len(values))]).abs() <= self.width)
        return self.shape(image, tissue).masked_fill(~tissue, -torch.inf)
