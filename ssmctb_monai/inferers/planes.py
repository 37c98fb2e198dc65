"""Inference by a 2D network along several axes of a volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SliceInferer
from torch import Tensor, nn

from ssmctb_monai.checks import check_positive
from ssmctb_monai.inferers.foreground import ForegroundInferer
from ssmctb_monai.networks.nets.detector import Detector
from ssmctb_monai.transforms.slices import PLANES, Plane, plane_axes, wide_axes


class PlanesInferer(Inferer):
    """Runs a 2D network over the slices of several planes and takes the mean, so that it sees all three axes.

    A plane whose slices are thinner than ``min_size`` along one of their axes is left out, as the coronal one is in a
    scan of few thick slices; where no plane is left, the first one is taken.

    Args:
        roi_size: size of the windows in a slice.
        planes: ``"axial"``, ``"coronal"`` and ``"sagittal"``, one or several.
        min_size: number of voxels that a slice must measure along both axes.
        arguments: further arguments of MONAI's ``SliceInferer``, by name: ``sw_batch_size``, ``overlap``, ``mode``, …

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> inferer = PlanesInferer(roi_size=(96, 96), planes=("axial", "coronal", "sagittal"), mode="gaussian")
        >>> inferer(torch.rand(1, 1, 80, 96, 70), network).shape
        torch.Size([1, 1, 80, 96, 70])
    """

    def __init__(
        self, roi_size: Sequence[int], planes: Sequence[Plane] | Plane = "axial", min_size: int = 32, **arguments: Any
    ) -> None:
        super().__init__()
        check_positive(min_size=min_size)
        self.min_size = min_size
        self.inferers = {
            axis: ForegroundInferer(SliceInferer(roi_size=tuple(roi_size), spatial_dim=axis, **arguments))
            for axis in plane_axes(planes)
        }

    def __call__(self, inputs: Tensor, network: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Runs the network.

        Args:
            inputs: image of shape (batch, channels, width, depth, height) in RAS orientation, 0 in the background.
            network: network that gives one tensor for a batch of slices, sample by sample.
            args: ignored.
            kwargs: ignored, as by `ForegroundInferer`.

        Returns:
            Mean of the planes' outputs.

        Raises:
            ValueError: when the image is no volume.
        """
        if inputs.dim() != 2 + len(PLANES):
            raise ValueError(f"Expected (batch, channels, width, depth, height), got shape {tuple(inputs.shape)}.")
        return torch.cat([self._volume(inputs[index : index + 1], network) for index in range(len(inputs))])

    def _volume(self, inputs: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean over the planes of one volume, of which nothing is left for the next one."""
        for module in network.modules() if isinstance(network, nn.Module) else ():
            if isinstance(module, Detector):
                module.begin_volume()
        chosen = wide_axes(list(self.inferers), inputs.shape[2:], self.min_size)
        return torch.stack([self.along(axis, inputs, network) for axis in chosen]).mean(dim=0)

    def along(self, axis: int, inputs: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Runs the network over the slices along one axis.

        Args:
            axis: axis of the volume across the slices.
            inputs: image of one volume.
            network: the network.

        Returns:
            Its output, of the size of the volume.
        """
        return self.inferers[axis](inputs, network)
