"""Ways to put a synthetic anomaly into an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssmctb_monai.transforms.anomalies.parts import AnomalyBlend


class SoftEdge(AnomalyBlend):
    """Image and source, mixed along the anomaly's border; half of each on the border itself.

    Args:
        width: largest width of the edge, in units of the shape's level; drawn from 0.

    Raises:
        ValueError: when the width is negative.
    """

    def __init__(self, width: float = 0.5) -> None:
        if width < 0:
            raise ValueError(f"width must not be negative, got {width}.")
        self.width = width
        self.drawn = width

    def randomize(self, data: Any = None) -> None:
        """Draws the width.

        Args:
            data: not used.
        """
        self.drawn = max(self.R.uniform(0, self.width), 2e-3)

    def __call__(self, image: Tensor, source: Tensor, level: Tensor, inside: Tensor) -> Tensor:
        """Puts an anomaly into an image, as `AnomalyBlend` describes it."""
        weight = (level / self.drawn + 0.5).clamp(0, 1) * inside
        return image + weight * (source - image)
