"""Ways to put a synthetic anomaly into an image."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmctb_monai.checks import check_choice
from ssmctb_monai.data.oriented_case import bounding_box
from ssmctb_monai.transforms.anomalies.parts import AnomalyBlend
from ssmctb_monai.transforms.anomalies.poisson import Gradients, poisson_blend


class SoftEdge(AnomalyBlend):
    """Image and source, mixed along the anomaly's border; half of each on the border itself.

    Args:
        width: largest width of the edge, in units of the shape's level; drawn from 0.
        factor: least and largest share of the source in the anomaly, drawn uniformly.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(self, width: float = 0.5, factor: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__(factor)
        if width < 0:
            raise ValueError(f"width must not be negative, got {width}.")
        self.width = width
        self.drawn = width

    def randomize(self, data: Any = None) -> None:
        """Draws width and factor.

        Args:
            data: not used.
        """
        self.drawn = max(self.R.uniform(0, self.width), 2e-3)
        super().randomize(data)

    def __call__(self, image: Tensor, source: Tensor, level: Tensor, inside: Tensor) -> Tensor:
        """Puts an anomaly into an image, as `AnomalyBlend` describes it."""
        weight = (level / self.drawn + 0.5).clamp(0, 1) * inside
        return image + self.drawn_factor * weight * (source - image)


class PoissonBlend(AnomalyBlend):
    """The source's gradients in the anomaly, so that no edge and no offset is left, only its structure.

    Pérez et al., *Poisson image editing*, ACM Transactions on Graphics 22(3), 2003,
    https://doi.org/10.1145/882262.882269, see `poisson_blend`. The image changes in the box around the anomaly, and
    there inside the brain only; a box at the border of the image goes up to it.

    Args:
        gradients: ``"source"``, ``"mixed"`` or ``"interpolated"``, see `poisson_blend`.
        factor: least and largest share of the source, drawn uniformly.
        spacing: size of a voxel in mm, one for all axes or one per axis.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> RandAnomaly(3, shapes=EllipsoidShape(), sources=DonorSource((1.0, 1.0)), blend=PoissonBlend("mixed"))
    """

    def __init__(
        self,
        gradients: Gradients = "source",
        factor: tuple[float, float] = (1.0, 1.0),
        spacing: float | tuple[float, ...] = 1.0,
    ) -> None:
        super().__init__(factor)
        check_choice(get_args(Gradients), gradients=gradients)
        if np.min(spacing) <= 0:
            raise ValueError(f"spacing must be positive, got {spacing}.")
        self.gradients = gradients
        self.spacing = spacing

    def __call__(self, image: Tensor, source: Tensor, level: Tensor, inside: Tensor) -> Tensor:
        """Puts an anomaly into an image, as `AnomalyBlend` describes it."""
        region = (level >= 0) & inside
        box_and_size = zip(bounding_box(region.numpy(force=True)), region.shape, strict=True)
        ends = [(side.start, side.stop, size) for side, size in box_and_size]
        box = (slice(None), *[slice(max(first - 1, 0), min(behind + 1, size)) for first, behind, size in ends])
        # The frame of voxels around the anomaly that stay as they are; beyond the image's border it is made.
        sides = [(int(first == 0), int(behind == size)) for first, behind, size in ends]

        def framed(part: Tensor) -> Tensor:
            return F.pad(part[box], [width for pair in reversed(sides) for width in pair])

        blended = poisson_blend(
            framed(image.float()),
            framed(source.float()),
            framed(region[None])[0],
            self.gradients,
            self.drawn_factor,
            self.spacing,
            framed(inside[None])[0],
        )
        for axis, (before, after) in enumerate(sides, start=1):
            blended = blended.narrow(axis, before, blended.shape[axis] - before - after)
        result = image.to(blended.dtype, copy=True)
        result[box] = torch.where(inside[box[1:]], blended, result[box])
        return result
