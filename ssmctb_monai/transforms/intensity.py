"""Intensity scaling inside the brain."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.transforms.utils_pytorch_numpy_unification import percentile
from monai.utils import convert_data_type, convert_to_dst_type
from torch import Tensor

from ssmctb_monai.checks import check_shares
from ssmctb_monai.data.brats import lacking_channels
from ssmctb_monai.transforms.brain import source_name


class RobustScaleIntensity(Transform):
    """Scales each channel to [0, 1] by median and interquartile range inside the brain; the background becomes 0.

    The median goes to 0.5, and ``limit`` interquartile ranges below and above it to 0 and 1; what lies beyond is
    clipped. Neither outliers nor a lesion of a fifth of the brain moves these statistics much, unlike minimum, maximum,
    mean or outer percentiles, and images that were scaled before come out the same.

    Args:
        limit: number of interquartile ranges between the median and either end, positive.

    Raises:
        ValueError: when ``limit`` is not positive, the brain is empty, or half of it has one value; the file is named.

    Example:
        >>> scaled = RobustScaleIntensity(limit=4)(image, brain)
    """

    def __init__(self, limit: float = 4.0) -> None:
        if limit <= 0:
            raise ValueError(f"limit must be positive, got {limit}.")
        self.limit = limit

    def __call__(self, image: NdarrayOrTensor, brain: NdarrayOrTensor, ranges: Tensor | None = None) -> NdarrayOrTensor:
        """Scales an image.

        Args:
            image: shape (channels, height, width[, depth]).
            brain: mask of shape (1, height, width[, depth]), 0 or 1.
            ranges: what :meth:`ranges` found, where that is known already.

        Returns:
            Image of the same shape, float32, in [0, 1].
        """
        ranges = self.ranges(image, brain) if ranges is None else ranges
        tensor = convert_data_type(image, torch.Tensor, dtype=torch.float32)[0]
        inside = convert_data_type(brain, torch.Tensor)[0][0] > 0
        scaled = torch.zeros_like(tensor)
        for channel, (median, width), result in zip(tensor, ranges, scaled, strict=True):
            if width > 0:
                result[inside] = (0.5 + (channel[inside] - median) / width).clamp(0, 1)
        return convert_to_dst_type(scaled, image, dtype=torch.float32)[0]

    def ranges(self, image: NdarrayOrTensor, brain: NdarrayOrTensor, lacking: Sequence[int] = ()) -> Tensor:
        """Finds the intensities that become 0, 0.5 and 1.

        Args:
            image: shape (channels, height, width[, depth]).
            brain: mask of shape (1, height, width[, depth]), 0 or 1.
            lacking: channels of modalities that the scan lacks.

        Returns:
            Tensor of shape (channels, 2): the intensity that becomes 0.5, and by how much those that become 0 and 1
            differ; 0 and 0 for a modality that is lacking, which stays 0.
        """
        tensor = convert_data_type(image, torch.Tensor, dtype=torch.float32)[0]
        inside = convert_data_type(brain, torch.Tensor)[0][0] > 0
        if not inside.any():
            raise ValueError(f"The brain mask of {source_name(image)} is empty.")
        ranges = torch.zeros(len(tensor), 2)
        for index, channel in enumerate(tensor):
            if index in lacking:
                continue
            lower, median, upper = percentile(channel[inside], [25, 50, 75])
            if upper <= lower:
                raise ValueError(f"Half of the brain in {source_name(image)}, channel {index}, has the value {lower}.")
            ranges[index] = torch.stack([median, 2 * self.limit * (upper - lower)])
        return ranges


class RobustScaleIntensityd(MapTransform):
    """Dictionary-based `RobustScaleIntensity`; modalities that `SelectChannelsd` put as missing stay 0.

    An item that has its ranges of intensities already, such as a picture of `LoadImages2Dd`, is scaled by these.

    Args:
        keys: keys of the images.
        brain_key: key of the brain mask.
        limit: number of interquartile ranges between the median and either end, positive.
        ranges_key: key under which the range of intensities is stored, for `RestoreIntensityd`.
        channels_key: key of the list of channel indices, where there is one, as `SelectChannelsd` takes it.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        brain_key: str = "brain",
        limit: float = 4.0,
        ranges_key: str = "intensity_ranges",
        channels_key: str = "channels",
    ) -> None:
        super().__init__(keys)
        self.brain_key = brain_key
        self.ranges_key = ranges_key
        self.channels_key = channels_key
        self.scale = RobustScaleIntensity(limit)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scales the images.

        Args:
            data: item with images and brain mask.

        Returns:
            The item with scaled images.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            if self.ranges_key not in data:
                lacking = lacking_channels(item, self.channels_key)
                item[self.ranges_key] = self.scale.ranges(item[key], item[self.brain_key], lacking)
            item[key] = self.scale(item[key], item[self.brain_key], item[self.ranges_key])
        return item


class RandContrast(RandomizableTransform):
    """Changes contrast and brightness of an image that `RobustScaleIntensity` scaled, as another scanner would.

    Inside the brain x' = 0.5 + c (x^γ - 0.5^γ) + b, clipped to [0, 1], with factor c, exponent γ and offset b drawn for
    each channel; the background stays 0. MONAI's `RandScaleIntensity` and `RandAdjustContrast` move the median,
    `RandScaleIntensityFixedMean` counts the background into the mean and changes it, too.

    Args:
        prob: probability that an image is changed.
        contrast: largest ``|log c|``, not negative; it is drawn uniformly, so that c and 1 / c are as likely.
        brightness: largest ``|b|``, in units of the image, not negative.
        gamma: largest ``|log γ|``, not negative; 0 leaves the image as it is.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> changed = RandContrast(prob=1.0).set_random_state(0)(image, brain)
    """

    def __init__(self, prob: float = 0.8, contrast: float = 0.35, brightness: float = 0.03, gamma: float = 0.0) -> None:
        super().__init__(prob)
        check_shares(prob=prob)
        for name, value in (("contrast", contrast), ("brightness", brightness), ("gamma", gamma)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        self.contrast = contrast
        self.brightness = brightness
        self.gamma = gamma

    def randomize(self, data: int) -> None:
        """Draws factors, offsets and exponents.

        Args:
            data: number of channels.
        """
        super().randomize(None)
        self.factors = np.exp(self.R.uniform(-self.contrast, self.contrast, size=data))
        self.offsets = self.R.uniform(-self.brightness, self.brightness, size=data)
        self.exponents = np.exp(self.R.uniform(-self.gamma, self.gamma, size=data))

    def __call__(self, image: NdarrayOrTensor, brain: NdarrayOrTensor) -> NdarrayOrTensor:
        """Changes an image.

        Args:
            image: shape (channels, height, width[, depth]), in [0, 1].
            brain: mask of shape (1, height, width[, depth]), 0 or 1.

        Returns:
            Image of the same shape and kind, in [0, 1]; as it was where it was not to be changed.
        """
        self.randomize(len(image))
        if not self._do_transform:
            return image
        tensor = convert_data_type(image, torch.Tensor, dtype=torch.float32)[0]
        inside = convert_data_type(brain, torch.Tensor, device=tensor.device)[0] > 0
        factors, offsets, exponents = (
            torch.as_tensor(drawn, dtype=torch.float32, device=tensor.device).view(-1, *[1] * (tensor.ndim - 1))
            for drawn in (self.factors, self.offsets, self.exponents)
        )
        curved = tensor - 0.5 if self.gamma == 0 else tensor**exponents - 0.5**exponents
        changed = (0.5 + factors * curved + offsets).clamp(0, 1) * inside
        return convert_to_dst_type(changed, image)[0]


class RandContrastd(RandomizableTransform, MapTransform):
    """Dictionary-based `RandContrast`.

    Args:
        keys: keys of the images; each is changed by draws of its own.
        brain_key: key of the brain mask.
        prob: probability that an image is changed.
        contrast: largest absolute logarithm of the factor.
        brightness: largest absolute offset, in units of the image.
        gamma: largest absolute logarithm of the exponent.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        brain_key: str = "brain",
        prob: float = 0.8,
        contrast: float = 0.35,
        brightness: float = 0.03,
        gamma: float = 0.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.brain_key = brain_key
        self.change = RandContrast(prob, contrast, brightness, gamma)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandContrastd:
        """Seeds all random draws.

        Args:
            seed: seed.
            state: random state instead of a seed.

        Returns:
            The transform.
        """
        super().set_random_state(seed, state)
        self.change.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Changes the images.

        Args:
            data: item with images and brain mask.

        Returns:
            The item with changed images.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.change(item[key], item[self.brain_key])
        return item


class RestoreIntensityd(MapTransform):
    """Gives images that `RobustScaleIntensityd` scaled, or reconstructions of them, the intensities of the scan again.

    Args:
        keys: keys of the images, in [0, 1].
        ranges_key: key of the range of intensities that `RobustScaleIntensityd` stored.
        allow_missing_keys: whether items without such an image pass.
    """

    def __init__(
        self,
        keys: KeysCollection = "reconstruction",
        ranges_key: str = "intensity_ranges",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ranges_key = ranges_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restores the intensities.

        Args:
            data: item with the images, shape (channels, height, width[, depth]), and their ranges.

        Returns:
            The item, its images in the units of the scan; what scaling clipped stays at the ends of the range.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            median, width = item[self.ranges_key].to(item[key].device).T.unflatten(1, (-1, *[1] * (item[key].ndim - 1)))
            item[key] = median + (item[key] - 0.5) * width
        return item
