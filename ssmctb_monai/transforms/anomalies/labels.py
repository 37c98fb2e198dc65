"""Labels of synthetic anomalies."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmctb_monai.data.oriented_case import bounding_box
from ssmctb_monai.transforms.anomalies.parts import AnomalyLabel
from ssmctb_monai.transforms.modalities import has_modality


def _change(clean: Tensor, corrupted: Tensor) -> Tensor:
    """The absolute difference, averaged over the modalities that the image has."""
    return (corrupted.float() - clean.float()).abs()[has_modality(clean)].mean(0)


class BinaryLabel(AnomalyLabel):
    """1 where an anomaly lies, 0 elsewhere."""

    def __call__(self, clean: Tensor, corrupted: Tensor, factors: Tensor) -> Tensor:
        """Labels an image, as `AnomalyLabel` describes it."""
        return (factors > 0).float()


class ContinuousLabel(AnomalyLabel):
    """How much an anomaly has changed the image: the absolute difference, averaged over the modalities that it has.

    Schlüter et al., *Natural Synthetic Anomalies*, ECCV 2022, https://arxiv.org/abs/2109.15222.

    Args:
        full: change that is labelled 1, as are larger ones.

    Raises:
        ValueError: when ``full`` is not positive.
    """

    def __init__(self, full: float = 1.0) -> None:
        if full <= 0:
            raise ValueError(f"full must be positive, got {full}.")
        self.full = full

    def __call__(self, clean: Tensor, corrupted: Tensor, factors: Tensor) -> Tensor:
        """Labels an image, as `AnomalyLabel` describes it."""
        return (_change(clean, corrupted) / self.full).clamp(max=1)


class LogisticLabel(AnomalyLabel):
    """How likely an observer sees the change: a logistic function of its absolute difference, averaged over modalities.

    Schlüter et al., *Natural Synthetic Anomalies*, ECCV 2022, https://arxiv.org/abs/2109.15222: 1 / (1 + exp(-k (D -
    x₀))) of the difference D, which a median filter has smoothed; 0 where the median of what has changed says that
    nothing has. The paper smooths D over a disk of radius 5 at 224 x 224; the same window serves both here, which on
    slices of 96 x 96 is about as large a part. The paper has k and x₀ for each kind of image, in grey values from 0 to
    255; the defaults here are its most frequent ones, divided by 255.

    Args:
        slope: k, steepness of the function.
        centre: x₀, change that is labelled 1/2.
        tolerance: change up to which a voxel is labelled 0.
        window: side of the median filters, odd; ``None``: 5 in 2D and 3 in 3D.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> RandAnomaly(2, blend=PoissonBlend(), label=LogisticLabel(centre=0.02))
    """

    def __init__(
        self,
        slope: float = 255 / 6,
        centre: float = 15 / 255,
        tolerance: float = 1 / 255,
        window: int | None = None,
    ) -> None:
        if slope <= 0:
            raise ValueError(f"slope must be positive, got {slope}.")
        if tolerance < 0:
            raise ValueError(f"tolerance must not be negative, got {tolerance}.")
        if window is not None and (window < 1 or window % 2 == 0):
            raise ValueError(f"window must be odd and positive, got {window}.")
        self.slope = slope
        self.centre = centre
        self.tolerance = tolerance
        self.window = window

    def __call__(self, clean: Tensor, corrupted: Tensor, factors: Tensor) -> Tensor:
        """Labels an image, as `AnomalyLabel` describes it."""
        difference = _change(clean, corrupted)
        label = torch.zeros_like(difference)
        if not (difference > self.tolerance).any():
            return label
        dims = difference.dim()
        window = self.window or (5 if dims == 2 else 3)
        reach = window // 2
        box = tuple(
            slice(max(side.start - reach, 0), side.stop + reach)
            for side in bounding_box((difference > self.tolerance).numpy(force=True))
        )
        difference = difference[box]
        padded = F.pad(difference[None, None], [reach] * (2 * dims), mode="replicate")
        pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
        is_median_changed = pool((padded > self.tolerance).float(), window, 1)[0, 0] > 0.5
        is_changed = is_median_changed & (difference > 0)
        windows = padded[0, 0]
        for axis in range(dims):
            windows = windows.unfold(axis, window, 1)
        # Medians take long: only where they count, and by NumPy, which sorts short rows faster than PyTorch does.
        rows = np.sort(windows[is_changed].flatten(1).cpu().numpy(), axis=1)
        medians = torch.from_numpy(rows[:, rows.shape[1] // 2]).to(label)
        label[box][is_changed] = torch.sigmoid(self.slope * (medians - self.centre))
        return label


class FactorLabel(AnomalyLabel):
    """The share of the source in an anomaly, as the blend has drawn it; the larger one where anomalies meet.

    Tan et al., *Detecting outliers with foreign patch interpolation*, MELBA 2022, https://arxiv.org/abs/2011.04197.
    """

    def __call__(self, clean: Tensor, corrupted: Tensor, factors: Tensor) -> Tensor:
        """Labels an image, as `AnomalyLabel` describes it."""
        return factors
