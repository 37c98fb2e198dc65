"""Where the brain is, and which channels of a 4D file are meant."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import FillHoles, KeepLargestConnectedComponent, MapTransform, Transform
from monai.utils import convert_data_type, convert_to_dst_type
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_li

from ssmctb_monai.data.brats import lacking_channels
from ssmctb_monai.transforms.skull import HAS_DEEPBET, MIN_SLICES, cut_out_brain, extract_brain, has_skull

logger = logging.getLogger(__name__)

Background = Literal["constant", "noise", "skull"]

NEARLY_ALL = 0.95  # of the image; a brain that fills its box leaves the corners


def source_name(data: Any) -> str:
    """Names the file that an image came from, for error messages.

    Args:
        data: an image, with MONAI's metadata or without.

    Returns:
        The file's name, or the shape where there is none.
    """
    name = getattr(data, "meta", {}).get("filename_or_obj")
    return str(name) if name else f"image of shape {tuple(data.shape)}"


def _axial(image: NdarrayOrTensor) -> tuple[list[int], tuple[float, float]]:
    """Order of an image's spatial axes with that of axial slices last, and the voxel size in these slices."""
    affine = convert_data_type(getattr(image, "affine", np.eye(4)), np.ndarray)[0]
    axes = [*range(image.ndim - 1)]
    if len(axes) == 3:
        axes.append(axes.pop(int(np.argmax(nibabel.io_orientation(affine)[:, 0] == 2))))
    sizes = nibabel.affines.voxel_sizes(affine)[axes]
    return axes, (float(sizes[0]), float(sizes[1]))


class BrainMask(Transform):
    """Brain mask of an image: what differs from the background, without holes, the largest part.

    A voxel is brain where any channel differs from its background. In an image with skull the mask is the head, unless
    ``background`` is ``"skull"``.

    Args:
        background: what the background is. ``"constant"``: the most frequent value on the faces of the image, in each
            channel: 0 in most BRATS files, the minimum in z-scored ones; where the background is noisy, nearly the
            whole image is brain then, and where there is a skull, the head: the log warns of both, and the mask has it
            as ``meta["doubt"]``. ``"noise"``: what lies below the threshold of Li and
            Tam, *An iterative algorithm for minimum cross entropy thresholding*, 1998,
            https://doi.org/10.1016/S0167-8655(98)00057-9, of the image smoothed by a standard deviation of a voxel;
            for the noisy air around a head. ``"skull"``: also what lies between that air and the brain, bone and
            scalp, by the first channel, which must be FLAIR, T1 or T1ce: by deepbet's network (`extract_brain`), or,
            where deepbet is not installed or the image is a slice, by thresholds, which are crude
            (`cut_out_brain`); voxels without an affine are 1 mm wide, their last axis the body's.

    Raises:
        ValueError: when ``background`` is unknown, or the image holds NaN or infinite values, or nothing but
            background, or no brain is found in a head; the file is named.

    Example:
        >>> brain = BrainMask()(image)  # (channels, ...) -> (1, ...), 0 or 1
    """

    def __init__(self, background: Background = "constant") -> None:
        if background not in get_args(Background):
            raise ValueError(f"background must be one of {get_args(Background)}, got {background!r}.")
        self.background = background
        self.trained = background == "skull" and HAS_DEEPBET  # an attribute, so that caches tell one from the other
        if background == "skull" and not HAS_DEEPBET:
            logger.warning(
                "Brains are cut out of heads by thresholds, which leave some scalp that is taken for lesions: "
                'pip install "ssmctb_monai[skull]" brings a network for it, or give brain masks.'
            )

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Finds the brain.

        Args:
            image: shape (channels, height, width[, depth]).

        Returns:
            Mask of shape (1, height, width[, depth]), uint8, 0 or 1.
        """
        mask = self.foreground(image)
        if self.background == "skull":
            return self._brain_in_head(image, mask)
        doubt = self._doubt(image, mask) if self.background == "constant" else None
        if doubt:
            logger.warning("%s %s.", source_name(image), doubt)
            if isinstance(mask, MetaTensor):
                mask.meta["doubt"] = doubt
        return mask

    def foreground(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Finds what is not background, the head where there is a skull; refuses an image that cannot be used.

        Args:
            image: shape (channels, height, width[, depth]).

        Returns:
            Mask of shape (1, height, width[, depth]), uint8, 0 or 1.
        """
        array = convert_data_type(image, np.ndarray)[0]
        if not np.isfinite(array).all():
            raise ValueError(f"{source_name(image)} holds NaN or infinite values: repair or leave out this case.")
        different = np.zeros(array.shape[1:], dtype=bool)
        for channel in array:
            different |= self._differs(channel)
        if not different.any():
            raise ValueError(f"{source_name(image)} holds nothing but background: repair or leave out this case.")
        largest = KeepLargestConnectedComponent(applied_labels=[1])(torch.from_numpy(different[None].astype(np.uint8)))
        # By way of NumPy: MONAI's transforms give the mask an affine of its own, which would take the image's place.
        filled = convert_data_type(FillHoles()(largest), np.ndarray)[0]
        return convert_to_dst_type(filled, image, dtype=torch.uint8)[0]

    @staticmethod
    def _doubt(image: NdarrayOrTensor, mask: NdarrayOrTensor) -> str | None:
        """What speaks against a mask's being that of a brain."""
        advice = "give a brain mask, or the brain, or take background='skull' (in a bundle: `--background skull`)"
        channels, inside = (convert_data_type(array, np.ndarray)[0] for array in (image, mask))
        if inside.mean() > NEARLY_ALL:
            return f"has no background of one value: {100 * inside.mean():.0f} % of it count as brain: {advice}"
        axes, spacing = _axial(image)
        if any(has_skull(np.atleast_3d(channel.transpose(axes)), spacing) for channel in channels):
            return f"looks like a head with its skull, all of which counts as brain: {advice}"
        return None

    def _brain_in_head(self, image: NdarrayOrTensor, head: NdarrayOrTensor) -> NdarrayOrTensor:
        channel, inside = (convert_data_type(array, np.ndarray)[0][0] for array in (image, head))
        if self.trained and channel.ndim == 3 and min(channel.shape) >= MIN_SLICES:
            affine = convert_data_type(getattr(image, "affine", np.eye(4)), np.ndarray)[0]
            brain = extract_brain(channel, affine) & (inside > 0)
        else:
            axes, spacing = _axial(image)
            slices, head_slices = (np.atleast_3d(array.transpose(axes)) for array in (channel, inside > 0))
            found = cut_out_brain(slices, head_slices, spacing)
            brain = found.reshape(slices.shape[: channel.ndim]).transpose(np.argsort(axes))
        if not brain.any():
            raise ValueError(f"No brain was found in the head of {source_name(image)}: give a brain mask.")
        return convert_to_dst_type(brain[None], image, dtype=torch.uint8)[0]

    def _differs(self, channel: np.ndarray) -> np.ndarray:
        if self.background != "constant":
            smooth = gaussian_filter(channel.astype(np.float32), sigma=1)
            return smooth > threshold_li(smooth) if smooth.min() < smooth.max() else np.zeros(channel.shape, dtype=bool)
        faces = np.concatenate([channel.take((0, -1), axis).ravel() for axis in range(channel.ndim)])
        values, counts = np.unique(faces, return_counts=True)
        return channel != values[counts.argmax()]


class BrainMaskd(MapTransform):
    """Dictionary-based `BrainMask`; a mask that the data bring along counts instead, made binary.

    Args:
        keys: key of the image; the mask of each is the same, so there is usually one.
        brain_key: key of the mask, read where present, else made.
        background: what the background is, ``"constant"``, ``"noise"`` or ``"skull"``.
    """

    def __init__(
        self, keys: KeysCollection = "image", brain_key: str = "brain", background: Background = "constant"
    ) -> None:
        super().__init__(keys)
        self.brain_key = brain_key
        self.brain_mask = BrainMask(background)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds or makes binary the brain mask.

        Args:
            data: item with the image, shape (channels, ...).

        Returns:
            The item with ``brain_key``, shape (1, ...), 0 or 1.

        Raises:
            ValueError: when image and mask differ in shape, or the mask is empty; the file is named.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            if self.brain_key in item:
                self.brain_mask.foreground(item[key])  # refuses an image that cannot be used
            else:
                item[self.brain_key] = self.brain_mask(item[key])
            brain = item[self.brain_key]
            if brain.shape[1:] != item[key].shape[1:]:
                raise ValueError(
                    f"{source_name(brain)} has shape {tuple(brain.shape[1:])}, "
                    f"but {source_name(item[key])} has {tuple(item[key].shape[1:])}."
                )
            item[self.brain_key] = convert_data_type(brain > 0.5, dtype=torch.uint8)[0]
            if not item[self.brain_key].any():
                raise ValueError(f"The brain mask {source_name(brain)} is empty.")
        return item


class SelectChannelsd(MapTransform):
    """Picks the channels that an item asks for, such as modalities of a 4D file; other items pass unchanged.

    Args:
        keys: keys of the images, shape (channels, ...).
        channels_key: key of the list of channel indices, absent where all channels are meant; -1 in it is a
            modality that the scan lacks, which becomes a channel of 0.
        num_channels: number of channels that an image must have then; ``None`` takes any.
    """

    def __init__(
        self, keys: KeysCollection = "image", channels_key: str = "channels", num_channels: int | None = None
    ) -> None:
        super().__init__(keys)
        self.channels_key = channels_key
        self.num_channels = num_channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Picks the channels.

        Args:
            data: item.

        Returns:
            The item, its images with the channels asked for, in that order.

        Raises:
            ValueError: when another number of channels is left; the file is named.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if self.channels_key in item:
                if max(item[self.channels_key]) >= len(image):
                    raise ValueError(
                        f"{source_name(image)} has {len(image)} channels, but number {max(item[self.channels_key])}, "
                        "counted from 0, is asked for: correct its channels in the datalist."
                    )
                item[key] = image[list(item[self.channels_key])]
                for channel in lacking_channels(item, self.channels_key):
                    item[key][channel] = 0
            if self.num_channels not in (None, len(item[key])):
                raise ValueError(
                    f"{source_name(image)} has {len(item[key])} channels, but {self.num_channels} are asked for: give "
                    "each modality a file of its own."
                )
        return item
