"""Anomaly maps after the network: smoothed inside the brain, made comparable between scans, and easy to read."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.networks.layers import GaussianFilter
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy, convert_to_tensor, ensure_tuple, ensure_tuple_rep
from torch import Tensor

from ssmctb_monai.transforms.brain import source_name

REACH = 1e-3  # share of the Gaussian that must lie in the mask


class MaskedGaussianSmooth(Transform):
    """Smooths inside a mask: the Gaussian mean of the voxels that lie in it.

    Knutsson and Westin, *Normalized and differential convolution*, CVPR 1993, https://doi.org/10.1109/CVPR.1993.341081:
    the smoothed image divided by the smoothed mask. MONAI's `GaussianSmooth` takes what lies outside for 0, so that
    maps fade at the rim of the brain, in the first and last slices, and to a fraction in a volume of one slice.

    Args:
        sigma: standard deviation in voxels, one for all axes or one each; 0 leaves an axis as it is.

    Raises:
        ValueError: when ``sigma`` is negative.

    Example:
        >>> MaskedGaussianSmooth(sigma=2)(torch.ones(1, 8, 8, 1), torch.ones(1, 8, 8, 1)).unique()
        tensor([1.])
    """

    def __init__(self, sigma: Sequence[float] | float) -> None:
        if any(deviation < 0 for deviation in ensure_tuple(sigma)):
            raise ValueError(f"sigma must not be negative, got {sigma}.")
        self.sigma = sigma

    def __call__(self, image: Tensor, mask: Tensor) -> Tensor:
        """Smooths an image.

        Args:
            image: shape (channels, height, width[, depth]).
            mask: shape (1, height, width[, depth]).

        Returns:
            Image of the same shape, float32. Outside the mask it goes on as far as the Gaussian reaches, so that a
            resampled image does not fade at the rim; beyond that it is 0.

        Raises:
            ValueError: when the shapes differ.
        """
        if mask.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"{source_name(image)} has shape {tuple(image.shape[1:])}, but the mask {tuple(mask.shape[1:])}."
            )
        plain = convert_to_tensor(image, dtype=torch.float32, track_meta=False)
        inside = convert_to_tensor(mask, track_meta=False).to(plain.device) > 0
        spatial_dims = plain.ndim - 1
        # MONAI's filter has no width 0; a kernel of a hundredth of a voxel is the identity to the last digit.
        sigma = [max(float(deviation), 0.01) for deviation in ensure_tuple_rep(self.sigma, spatial_dims)]
        smooth = GaussianFilter(spatial_dims, sigma).to(plain.device)
        weights = smooth(inside[None].float())[0]
        smoothed = torch.where(weights > REACH, smooth((plain * inside)[None])[0] / weights.clamp_min(REACH), 0)
        return convert_to_dst_type(smoothed, image, dtype=torch.float32)[0]


class MaskedGaussianSmoothd(MapTransform):
    """Dictionary-based `MaskedGaussianSmooth`.

    Args:
        keys: keys of the images.
        sigma: standard deviation in voxels, one for all axes or one each; 0 leaves an axis as it is.
        mask_key: key of the mask.
        allow_missing_keys: whether items without such an image pass.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        sigma: Sequence[float] | float,
        mask_key: str = "brain",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.smooth = MaskedGaussianSmooth(sigma)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Smooths the images.

        Args:
            data: item with images and mask.

        Returns:
            The item with smoothed images.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.smooth(item[key], item[self.mask_key])
        return item


class CalibrateScores(Transform):
    """Makes the scores of scans comparable: the odds of every voxel, relative to those of the scan's median voxel.

    A network's scores mean different things on different scanners. Most of a brain is healthy, so that the median
    tells what the network says of healthy tissue in this scan: with the odds p / (1 - p), the calibrated score s has
    s / (1 - s) = n / (1 - n) · odds(p) / odds(median p), where n is the ``normal`` score that the median voxel gets.
    It is the correction for another prior of Saerens et al., *Adjusting the outputs of a classifier to new a priori
    probabilities*, Neural Computation 14(1), 2002, https://doi.org/10.1162/089976602753284446. The order of the voxels
    of a scan stays as it is.

    Args:
        normal: score of the median voxel, between 0 and 1.
        least: scores are first limited to [``least``, 1 - ``least``].

    Raises:
        ValueError: when an argument is outside its range, or the mask is empty; the file is named.

    Example:
        >>> scores = torch.tensor([[0.2, 0.2, 0.5]])
        >>> CalibrateScores(normal=0.2)(scores, torch.ones(1, 3))  # odds 1/4, 1/4, 1
        tensor([[0.2000, 0.2000, 0.5000]])
    """

    def __init__(self, normal: float = 0.05, least: float = 1e-4) -> None:
        for name, value, bound in (("normal", normal, 1), ("least", least, 0.5)):
            if not 0 < value < bound:
                raise ValueError(f"{name} must be between 0 and {bound}, got {value}.")
        self.normal = normal
        self.least = least

    def __call__(self, scores: Tensor, brain: Tensor) -> Tensor:
        """Calibrates an anomaly map.

        Args:
            scores: shape (channels, height, width[, depth]), in [0, 1].
            brain: mask of shape (1, height, width[, depth]).

        Returns:
            Scores of the same shape in [0, 1], float32.
        """
        plain = convert_to_tensor(scores, dtype=torch.float32, track_meta=False)
        inside = convert_to_tensor(brain, track_meta=False).to(plain.device) > 0
        if not inside.any():
            raise ValueError(f"The brain mask of {source_name(scores)} is empty.")
        logits = plain.logit(eps=self.least)
        medians = torch.stack([channel[inside[0]].median() for channel in logits])
        offset = torch.tensor(self.normal, device=plain.device).logit() - medians
        calibrated = (logits + offset.view(-1, *[1] * (plain.ndim - 1))).sigmoid()
        return convert_to_dst_type(calibrated, scores, dtype=torch.float32)[0]


class CalibrateScoresd(MapTransform):
    """Dictionary-based `CalibrateScores`.

    Args:
        keys: keys of the anomaly maps.
        brain_key: key of the brain mask.
        normal: score of the median voxel, between 0 and 1.
        least: scores are first limited to [``least``, 1 - ``least``].
    """

    def __init__(
        self, keys: KeysCollection = "pred", brain_key: str = "brain", normal: float = 0.05, least: float = 1e-4
    ) -> None:
        super().__init__(keys)
        self.brain_key = brain_key
        self.calibrate = CalibrateScores(normal, least)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Calibrates the anomaly maps.

        Args:
            data: item with maps and brain mask.

        Returns:
            The item with calibrated maps.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.calibrate(item[key], item[self.brain_key])
        return item


class ScaleScores(Transform):
    """Makes maps that read themselves: healthy tissue is near 0, and what is flagged is at or above one half.

    The scale goes linearly through 0, the median score of healthy tissue, the threshold and 1; the order of scores
    stays as it is, and so do all figures that rank them. A score on it is no probability.

    Args:
        threshold: score that becomes 0.5, above 0.
        median: score that becomes 0.05, such as the median of lesion-free regions; ``None``, or one that is not between
            0 and the threshold, leaves it out.

    Raises:
        ValueError: when the threshold is not above 0.

    Example:
        >>> ScaleScores(threshold=0.2, median=0.1)(torch.tensor([0.0, 0.1, 0.2, 0.6, 1.0]))
        tensor([0.0000, 0.0500, 0.5000, 0.7500, 1.0000])
    """

    MEDIAN, THRESHOLD = 0.05, 0.5

    def __init__(self, threshold: float, median: float | None = None) -> None:
        if not threshold > 0:
            raise ValueError(f"Scores are at least 0: a threshold of {threshold} has no place above healthy tissue.")
        points = {0.0: 0.0, threshold: self.THRESHOLD, 1.0 if threshold < 1 else 2 * threshold: 1.0}
        if median is not None and 0 < median < threshold:
            points[median] = self.MEDIAN
        self.scores = sorted(points)
        self.scaled = [points[score] for score in self.scores]

    def __call__(self, scores: Tensor) -> Tensor:
        """Scales an anomaly map.

        Args:
            scores: any shape, in [0, 1].

        Returns:
            Scores of the same shape in [0, 1], float32; NaN where they are NaN.
        """
        values = convert_to_numpy(scores)
        scaled = np.zeros(values.shape, np.float32)
        inside = ~(values <= 0)  # most of a scan is background; NaN stays NaN, for what takes the map to refuse
        scaled[inside] = np.interp(values[inside], self.scores, self.scaled)
        return convert_to_dst_type(scaled, scores)[0]
