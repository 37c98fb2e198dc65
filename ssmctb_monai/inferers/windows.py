"""Inference on volumes, by the windows of a network in 2D or 3D, or of several networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor, nn

from ssmctb_monai.checks import check_context, check_spatial_dims
from ssmctb_monai.inferers.foreground import ForegroundInferer
from ssmctb_monai.inferers.planes import PlanesInferer
from ssmctb_monai.inferers.sequences import SequenceInferer
from ssmctb_monai.transforms.slices import Plane


def window_inferer(
    spatial_dims: int,
    roi_size: Sequence[int],
    planes: Sequence[Plane] | Plane | None = None,
    context: Sequence[int] = (),
    sw_batch_size: int | None = None,
    overlap: float = 0.5,
    mode: str = "gaussian",
    **arguments: Any,
) -> Inferer:
    """Makes the inferer of a network: on the slices of several planes in 2D, on windows with foreground in 3D.

    Args:
        spatial_dims: number of spatial dimensions of the network, 2 or 3.
        roi_size: window in voxels along each of the three axes; in 2D the first two are that in a slice.
        planes: planes of a network in 2D, see `PlanesInferer`; ``None``: the axial one.
        context: offsets of the slices that a network in 2D sees beside each slice, see `SequenceInferer`.
        sw_batch_size: number of windows that the network sees at a time; ``None``: 16 in 2D, 2 in 3D.
        overlap: share of a window that neighbours have in common.
        mode: ``"gaussian"`` weighs the middle of a window more, ``"constant"`` does not.
        arguments: further arguments of MONAI's ``SlidingWindowInferer`` or ``SliceInferer``, by name.

    Returns:
        The inferer.

    Raises:
        ValueError: when an argument is outside its range, or a network in 3D is given a context.

    Example:
        >>> inferer = window_inferer(spatial_dims=2, roi_size=(96, 96, 1), planes=("axial", "coronal"))
    """
    check_spatial_dims(spatial_dims)
    check_context(context, spatial_dims)
    given = {"overlap": overlap, "mode": mode, **arguments}
    if spatial_dims == 2:
        given = {"planes": planes or "axial", "sw_batch_size": sw_batch_size or 16, **given}
        return SequenceInferer(roi_size[:2], context, **given) if context else PlanesInferer(roi_size[:2], **given)
    return ForegroundInferer(SlidingWindowInferer(roi_size, sw_batch_size or 2, **given))


class EnsembleInferer(Inferer):
    """Runs the networks of an ensemble, each by an inferer of its own, as MONAI's ``EnsembleEvaluator`` calls them.

    Args:
        inferers: inferer of each network.
        default: inferer of all other networks.

    Example:
        >>> inferer = EnsembleInferer({network_3d: window_inferer(3, (64, 96, 64))}, window_inferer(2, (96, 96, 1)))
    """

    def __init__(self, inferers: Mapping[nn.Module, Inferer], default: Inferer) -> None:
        super().__init__()
        self.inferers = dict(inferers)
        self.default = default

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the inferer of a network.

        Args:
            inputs: image of shape (batch, channels, width, depth, height).
            network: network.
            args: further positional arguments of the inferer.
            kwargs: further keyword arguments of the inferer.

        Returns:
            What the inferer returns.
        """
        own = self.inferers.get(network, self.default) if isinstance(network, nn.Module) else self.default
        return own(inputs, network, *args, **kwargs)
