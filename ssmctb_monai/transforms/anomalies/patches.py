"""Shapes of pasted patches, whose sides are shares of the image's."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ssmctb_monai.checks import check_ranges, check_whole
from ssmctb_monai.data.oriented_case import bounding_box
from ssmctb_monai.transforms.anomalies.parts import AnomalyShape, drawn_voxel
from ssmctb_monai.transforms.anomalies.shapes import turned_places


class PatchShape(AnomalyShape):
    """Box (in 2D, rectangle) of drawn sides around a voxel drawn inside, of which what lies inside counts.

    It is moved so that it lies within the image, as far as it goes along the image's axes. Levels are logarithms of the
    size at which the border would be here, relative to where it is.
    """

    @abstractmethod
    def sides(self, spatial_dims: int) -> np.ndarray:
        """Draws the sides.

        Args:
            spatial_dims: number of spatial dimensions.

        Returns:
            Side along each axis, as a share of the image's.
        """

    def turn(self, spatial_dims: int) -> np.ndarray | None:
        """Draws the orientation.

        Args:
            spatial_dims: number of spatial dimensions.

        Returns:
            Orthogonal matrix; ``None``: sides along the image's axes.
        """
        return None

    def __call__(self, image: Tensor, inside: Tensor) -> Tensor:
        """Draws a shape, as `AnomalyShape` describes it."""
        sizes = np.array(inside.shape)
        middle = drawn_voxel(inside, self.R)
        sides = self.sides(len(sizes)) * sizes
        sides = np.maximum(sides, 1)  # voxels
        turn = self.turn(len(sizes))
        if turn is None:
            sides = np.minimum(np.round(sides), sizes)
            middle = np.clip(middle - sides // 2, 0, sizes - sides) + (sides - 1) / 2
            turn = np.eye(len(sizes))
        distance = turned_places(inside, middle, 2 / sides[:, None] * turn).abs().amax(0)
        return -distance.clamp_min(torch.finfo(distance.dtype).tiny).log()


class UniformPatchShape(PatchShape):
    """Cube (in 2D, square), if the image is one: the same drawn share of the image along all axes.

    Tan et al., *Detecting outliers with foreign patch interpolation*, MELBA 2022, https://arxiv.org/abs/2011.04197.

    Args:
        side: least and largest side, as a share of the image's; drawn uniformly.

    Raises:
        ValueError: when the range is not increasing, or outside (0, 1].

    Example:
        >>> level = UniformPatchShape().set_random_state(0)(image, inside)
    """

    def __init__(self, side: tuple[float, float] = (0.1, 0.4)) -> None:
        check_ranges(1, side=side)
        self.side = side

    def sides(self, spatial_dims: int) -> np.ndarray:
        """Draws the sides, as `PatchShape` describes it."""
        return np.full(spatial_dims, self.R.uniform(*self.side))


class GammaPatchShape(PatchShape):
    """Patch of Natural Synthetic Anomalies: many small ones and few large ones, boxes or unions of ellipsoids.

    Schlüter et al., *Natural Synthetic Anomalies*, ECCV 2022, https://arxiv.org/abs/2109.15222. The half of a side is
    ``least`` + Γ(2, ``scale``), limited to ``bounds``; the patch is cut at the border of the image that it is taken
    from, then magnified, and its sides are limited again.

    Args:
        least: what is added to the draw, as a share of the image's side.
        scale: scale of the Gamma distribution, as a share of the image's side.
        bounds: least and largest half of a side before it is magnified, and side afterwards, as shares of the image's.
        zoom: least and largest magnification, to which a draw of mean 1 and standard deviation 0.5 is limited.
        ellipsoids: number of ellipsoids within the box whose union is the shape, of any orientation, with half axes
            from the least bound to the half of a side; 0: the box itself.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> chest_x_ray = GammaPatchShape(least=0.05, scale=0.03)
        >>> texture = GammaPatchShape(zoom=(0.5, 2.0))
    """

    def __init__(
        self,
        least: float = 0.03,
        scale: float = 0.05,
        bounds: tuple[float, float] = (0.03, 0.4),
        zoom: tuple[float, float] = (0.7, 1.3),
        ellipsoids: int = 0,
    ) -> None:
        if least < 0 or scale <= 0:
            raise ValueError(f"least must not be negative, and scale positive, got {least} and {scale}.")
        check_ranges(0.5, bounds=bounds)
        check_ranges(np.inf, zoom=zoom)
        check_whole(0, ellipsoids=ellipsoids)
        self.least = least
        self.scale = scale
        self.bounds = bounds
        self.zoom = zoom
        self.ellipsoids = ellipsoids

    def sides(self, spatial_dims: int) -> np.ndarray:
        """Draws the sides, as `PatchShape` describes it."""
        half = np.clip(self.least + self.R.gamma(2, self.scale, size=spatial_dims), *self.bounds)
        middle = self.R.uniform(self.bounds[0], 1 - self.bounds[0], size=spatial_dims)
        cut = np.minimum(middle + half, 1) - np.maximum(middle - half, 0)
        zoom = np.clip(self.R.normal(1, 0.5), *self.zoom)
        zoom = np.clip(zoom * cut[0], *self.bounds) / cut[0]  # the first limits it for all, which keeps the aspect
        return np.clip(zoom * cut, *self.bounds)

    def __call__(self, image: Tensor, inside: Tensor) -> Tensor:
        """Draws a shape, as `AnomalyShape` describes it."""
        box = super().__call__(image, inside)
        if not self.ellipsoids:
            return box
        sizes = np.array(inside.shape)
        available = (box >= 0) & inside
        half = np.array([side.stop - side.start for side in bounding_box(available.numpy(force=True))]) / 2
        level = torch.full_like(box, -torch.inf)
        for _ in range(self.ellipsoids):
            middle = drawn_voxel(available, self.R)
            least = self.bounds[0] * sizes
            axes = self.R.uniform(least, np.maximum(least, half))
            turn = np.linalg.qr(self.R.standard_normal((len(sizes), len(sizes))))[0]
            distance = turned_places(inside, middle, turn / axes[:, None]).square().sum(0)
            level = level.maximum(-distance.clamp_min(torch.finfo(distance.dtype).tiny).log() / 2)
        return level.minimum(box)


class AreaPatchShape(PatchShape):
    """Patch of CutPaste: of a drawn area and aspect.

    Li et al., *CutPaste: Self-supervised learning for anomaly detection and localization*, CVPR 2021,
    https://arxiv.org/abs/2104.04015. In 3D the geometric mean of the sides is drawn as in 2D, so that volumes are those
    areas to the power of 3/2.

    Args:
        area: least and largest area, as a share of the image's, drawn uniformly.
        aspect: largest ratio of another side to the first, as shares of the image's; drawn log-uniformly from its
            inverse.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> level = AreaPatchShape().set_random_state(0)(image, inside)
    """

    def __init__(self, area: tuple[float, float] = (0.02, 0.15), aspect: float = 3.3) -> None:
        check_ranges(1, area=area)
        if aspect < 1:
            raise ValueError(f"aspect must be at least 1, got {aspect}.")
        self.area = area
        self.aspect = aspect

    def sides(self, spatial_dims: int) -> np.ndarray:
        """Draws the sides, as `PatchShape` describes it."""
        ratios = np.zeros(spatial_dims)
        ratios[1:] = self.R.uniform(-np.log(self.aspect), np.log(self.aspect), size=spatial_dims - 1)
        return np.sqrt(self.R.uniform(*self.area)) * np.exp(ratios - ratios.mean())


class ScarShape(PatchShape):
    """Scar of CutPaste: a thin rectangle, in 3D a rod, turned about its middle.

    Li et al., *CutPaste: Self-supervised learning for anomaly detection and localization*, CVPR 2021,
    https://arxiv.org/abs/2104.04015, whose scars are 2 to 16 pixels wide and 10 to 25 long at 256 x 256.

    Args:
        width: least and largest width, as a share of the image's side, drawn uniformly; the same across the rod.
        length: least and largest length, as a share of the image's side, drawn uniformly; along any axis.
        angle: largest turn, in degrees, in each plane of two axes; drawn uniformly, either way.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> level = ScarShape(angle=45).set_random_state(0)(image, inside)
    """

    def __init__(
        self,
        width: tuple[float, float] = (2 / 256, 16 / 256),
        length: tuple[float, float] = (10 / 256, 25 / 256),
        angle: float = 45.0,
    ) -> None:
        check_ranges(1, width=width, length=length)
        if not 0 <= angle <= 180:
            raise ValueError(f"angle must be in [0, 180] degrees, got {angle}.")
        self.width = width
        self.length = length
        self.angle = angle

    def sides(self, spatial_dims: int) -> np.ndarray:
        """Draws the sides, as `PatchShape` describes it."""
        sides = np.full(spatial_dims, self.R.uniform(*self.width))
        sides[self.R.randint(spatial_dims)] = self.R.uniform(*self.length)
        return sides

    def turn(self, spatial_dims: int) -> np.ndarray:
        """Draws the orientation, as `PatchShape` describes it."""
        angles = self.R.uniform(-self.angle, self.angle, size=(1, 3 if spatial_dims == 3 else 1))
        turns = Rotation.from_euler("zyx"[: angles.shape[1]], angles, degrees=True).as_matrix()
        return turns[0, :spatial_dims, :spatial_dims]
