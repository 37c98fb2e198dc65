"""Inference by a 2D network on slices that are seen with others of their volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmctb_monai.checks import check_context
from ssmctb_monai.inferers.planes import PlanesInferer
from ssmctb_monai.transforms.slices import Plane, foreground_slices, slice_runs


class SequenceInferer(PlanesInferer):
    """Runs a 2D network over the slices of a volume, each with its context, as `RandSlicesd` draws them.

    Every slice is scored, also the first and the last ones: the mean is taken of the directions whose context lies
    inside the volume; where neither does, of both, with the slices at the border in place of those beyond. The volume
    reaches from the first to the last slice with foreground; those beyond, as of padding, get 0.

    Args:
        roi_size: size of the windows in a slice.
        context: offsets of the context slices from their slice, such as (-4, -3, -2, -1).
        planes: ``"axial"``, ``"coronal"`` and ``"sagittal"``, one or several, whose mean is taken.
        min_size: number of voxels that a slice must measure along both axes, see `PlanesInferer`.
        arguments: further arguments of MONAI's ``SliceInferer``, by name: ``sw_batch_size``, ``overlap``, ``mode``, …

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> inferer = SequenceInferer(roi_size=(96, 96), context=(-1,))
        >>> copy_error = inferer(torch.rand(1, 1, 80, 96, 70), lambda x: (x[:, :1] - x[:, 1:]).abs())
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        context: Sequence[int],
        planes: Sequence[Plane] | Plane = "axial",
        min_size: int = 32,
        **arguments: Any,
    ) -> None:
        super().__init__(roi_size, planes, min_size, **arguments)
        self.context = check_context(context)

    def along(self, axis: int, inputs: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Runs the network over the slices along one axis, in both directions.

        Args:
            axis: axis of the volume across the slices.
            inputs: image of one volume.
            network: the network; it gets the channels of the slice first, then those of its context, slice by slice.

        Returns:
            The mean over the directions, of the size of the volume.
        """
        dim = axis + 2
        first, size = foreground_slices(inputs, dim)
        volume = inputs.narrow(dim, first, size)
        directions = zip(*map(torch.from_numpy, slice_runs(size, self.context)), strict=True)
        total, number = [], []
        for indices, counts in directions:
            run = torch.cat([volume.index_select(dim, each.to(inputs.device)) for each in indices.T], dim=1)
            along_axis = counts.to(inputs.device, inputs.dtype).view(
                [-1 if other == dim else 1 for other in range(inputs.dim())]
            )
            total.append(super().along(axis, run.mul_(along_axis), network))  # which leaves slices of 0 out
            number.append(along_axis)
        mean = torch.stack(total).sum(dim=0) / torch.stack(number).sum(dim=0)
        return F.pad(mean, [*[0, 0] * (2 - axis), first, inputs.shape[dim] - first - size])
