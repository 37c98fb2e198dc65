"""Anomaly maps after the network: smoothed inside the brain, and made comparable between scans."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.networks.layers import GaussianFilter
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple, ensure_tuple_rep
from torch import Tensor

from ssmctb_monai.transforms.brain import source_name

NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute deviation


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
            Image of the same shape, float32; 0 outside the mask.

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
        smoothed = torch.where(inside, smooth((plain * inside)[None])[0] / weights, 0)
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
