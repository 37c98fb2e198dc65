"""What all detectors have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.checks import check_image, check_shares, check_spatial_dims, check_whole
from ssmctb_monai.networks.perturbation import perturbed


class Detector(nn.Module):
    """Network that finds anomalies: in training it returns what its loss takes, at evaluation the anomaly map.

    A system's network derives from it and writes :meth:`training_output` and :meth:`anomaly_map`, and ``reconstruct``,
    from image to lesion-free image (of a run of slices the slice alone), where it has one. Images have any size:
    :meth:`padded` and :meth:`cut` go around layers that need a multiple of ``stride``. What is fitted after training,
    such as a memory, is a buffer, so that the state dict is the whole detector.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, that is of modalities.
        stride: what the size of a padded image is a multiple of, along each axis.
        perturbation: step that an image is moved by before it is scored, towards what ``reconstruct`` gives back, see
            :func:`~ssmctb_monai.networks.perturbation.perturbed`; 0: it is scored as it is. With it the detector cannot
            be exported.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> class Brightness(Detector):
        ...     def training_output(self, x):
        ...         return x
        ...
        ...     def anomaly_map(self, x):
        ...         return x.mean(dim=1, keepdim=True)
        >>> Brightness(spatial_dims=3, in_channels=2).eval()(torch.rand(1, 2, 40, 50, 30)).shape
        torch.Size([1, 1, 40, 50, 30])
    """

    def __init__(self, spatial_dims: int, in_channels: int, stride: int = 1, perturbation: float = 0.0) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_whole(1, in_channels=in_channels, stride=stride)
        check_shares(perturbation=perturbation)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.stride = stride
        self.perturbation = perturbation

    def __prepare_scriptable__(self) -> Detector:
        """Refuses what TorchScript cannot run, before it compiles anything."""
        self._check_export()
        return self

    def forward(self, x: Tensor) -> Any:
        """Gives what the loss takes, or finds anomalies.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]), with values in [0, 1].

        Returns:
            In training mode what :meth:`training_output` does. In evaluation mode, and when exported, the anomaly map
            in [0, 1], shape (batch, 1, height, width[, depth]).

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
            RuntimeError: when the detector is being exported, and cannot be.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        if not torch.jit.is_scripting():
            if self.training:
                return self.training_output(x)
            if torch.jit.is_tracing() or torch.compiler.is_compiling():
                self._check_export()
            if self.perturbation > 0:
                x = perturbed(self, x, self.perturbation)
        return self.anomaly_map(x)

    def training_output(self, x: Tensor) -> Any:
        """Computes what the loss takes.

        Args:
            x: image as in :meth:`forward`.

        Returns:
            A tensor, or a tuple whose first item is one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define training_output.")

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds anomalies.

        Args:
            x: image as in :meth:`forward`.

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        raise NotImplementedError(f"{type(self).__name__} must define anomaly_map.")

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Takes from lesion-free images what needs no gradients; most detectors need nothing of the kind.

        A detector that does keeps it in buffers, and is called before each validation, by
        :class:`~ssmctb_monai.handlers.FitDetector`.

        Args:
            batches: lesion-free images (batch, in_channels, height, width[, depth]) as training sees them, and masks of
                their brain (batch, 1, height, width[, depth]).
        """

    def begin_volume(self) -> None:
        """Forgets what slices of another volume have left; most detectors keep nothing.

        Inferers of networks in 2D call it before each volume.
        """

    def unexportable(self) -> str:
        """Says which argument makes evaluation do what no export can, and what to set it to; empty where none does."""
        return "perturbation to 0" if self.perturbation > 0 else ""

    def _check_export(self) -> None:
        if argument := self.unexportable():
            raise RuntimeError(f"{type(self).__name__} as it evaluates cannot be exported: set {argument}.")

    def padded(self, x: Tensor) -> Tensor:
        """Repeats the border of an image on the high sides, up to a multiple of the stride.

        Args:
            x: image (batch, channels, height, width[, depth]).

        Returns:
            The padded image.
        """
        padding: list[int] = []
        for axis in range(x.dim() - 1, 1, -1):
            padding += [0, -x.shape[axis] % self.stride]
        return F.pad(x, padding, mode="replicate")

    def cut(self, padded: Tensor, x: Tensor) -> Tensor:
        """Cuts to the size of an image what was computed of the padded one.

        Args:
            padded: tensor (batch, channels, …) of the size of the padded image.
            x: the image.

        Returns:
            The part where the image is.
        """
        for axis in range(2, x.dim()):
            padded = padded.narrow(axis, 0, x.shape[axis])
        return padded
