"""What networks have in common that see a slice with slices beside it."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from ssmctb_monai.checks import check_choice, check_whole
from ssmctb_monai.networks.error_maps import ErrorKind, error_map
from ssmctb_monai.networks.nets.detector import Detector


class SlicePredictor(Detector):
    """Detector of which an image is a run of slices as channels: those of a slice first, then those of its context.

    `RandSlicesd` and `SequenceInferer` give such runs; the context comes slice by slice. ``reconstruct`` gives the
    slice alone: predicted from its context, or reconstructed together with it.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3, where a run is of slabs.
        in_channels: number of input channels, those of the slice and of its context.
        out_channels: number of channels of a slice, that is of modalities.
        stride: what the size of a padded image is a multiple of, along each axis.
        score: error of the prediction, see :func:`~ssmctb_monai.networks.error_maps.error_map`.
        perturbation: step of a run before it is scored, see `Detector`.

    Raises:
        ValueError: when an argument is outside its range, or the channels are not those of a slice and its context.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: int,
        score: ErrorKind,
        perturbation: float = 0.0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, stride, perturbation)
        check_whole(1, out_channels=out_channels)
        check_choice(get_args(ErrorKind), score=score)
        self.num_slices, rest = divmod(in_channels, out_channels)
        if self.num_slices < 2 or rest:
            raise ValueError(
                f"in_channels must be those of a slice and of one or more context slices, multiples of out_channels "
                f"{out_channels}, got {in_channels}: give the offsets of context slices by --context."
            )
        self.out_channels = out_channels
        self.score = score

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds what of the slice is not as ``reconstruct`` gives it.

        Args:
            x: run (batch, in_channels, height, width[, depth]).

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        return error_map(self.reconstruct(x).clamp(0, 1), self.slice_of(x), self.score)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Gives the slice as it should be.

        Args:
            x: run (batch, in_channels, height, width[, depth]).

        Returns:
            The slice (batch, out_channels, …).
        """
        raise NotImplementedError(f"{type(self).__name__} must define reconstruct.")

    def slice_of(self, x: Tensor) -> Tensor:
        """Takes the slice.

        Args:
            x: run (batch, in_channels, height, width[, depth]).

        Returns:
            The slice (batch, out_channels, …).
        """
        return x[:, : self.out_channels]

    def context_of(self, x: Tensor) -> Tensor:
        """Takes the context, padded to a multiple of the stride.

        Args:
            x: run (batch, in_channels, height, width[, depth]).

        Returns:
            The context (batch, in_channels - out_channels, …).
        """
        return self.padded(x[:, self.out_channels :])
