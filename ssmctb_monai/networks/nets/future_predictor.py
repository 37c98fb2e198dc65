"""Prediction of a slice from slices beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ssmctb_monai.checks import check_choice, check_image
from ssmctb_monai.networks.blocks.decoder import Decoder
from ssmctb_monai.networks.blocks.encoder import Encoder
from ssmctb_monai.networks.blocks.factory import Block
from ssmctb_monai.networks.error_maps import ErrorKind
from ssmctb_monai.networks.nets.slice_predictor import SlicePredictor

Prediction = Literal["unet", "mean"]


class ContextMean(nn.Module):
    """Predicts a slice by the mean of its context, the weights of which alone are learned.

    What any prediction must beat; of one context slice it is the copy.

    Args:
        num_slices: number of context slices.
    """

    def __init__(self, num_slices: int) -> None:
        super().__init__()
        self.num_slices = num_slices
        self.logits = nn.Parameter(torch.zeros(num_slices))

    def forward(self, context: Tensor) -> Tensor:
        """Takes the mean.

        Args:
            context: channels of the context, slice by slice (batch, num_slices · channels, height, width[, depth]).

        Returns:
            Tensor (batch, channels, height, width[, depth]).
        """
        slices = context.unflatten(1, [self.num_slices, context.shape[1] // self.num_slices])
        weights = self.logits.softmax(dim=0).view([1, -1] + [1] * (slices.dim() - 2))
        return (slices * weights).sum(dim=1)


class FuturePredictor(SlicePredictor):
    """Predicts a slice from its context, and finds what differs from the prediction.

    Liu et al., *Future frame prediction for anomaly detection - a new baseline*, CVPR 2018,
    https://arxiv.org/abs/1712.09867, on slices of a volume in place of frames: a U-Net of two convolutions a stage with
    ReLU, without norm, max pooling, transposed convolutions and a hyperbolic tangent, trained by `PredictionLoss` and,
    where the training has one, an :class:`~ssmctb_monai.engines.Adversary`. The paper's term of optical flow is left
    out: nothing moves in a volume. With a block in place of the penultimate convolution after Madan et al., TPAMI
    46(1), 2024, https://arxiv.org/abs/2209.12148.

    An image is a run of slices as channels, those of the slice first, then those of its context, slice by slice, as
    `RandSlicesd` and `SequenceInferer` give them.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3, where a run is of slabs.
        in_channels: number of input channels, those of the slice and of its context.
        out_channels: number of channels of a slice, that is of modalities.
        channels: channels of the stages, each of half the size of the one before; published are (64, 128, 256, 512).
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of the
            penultimate convolution; ``"none"`` or ``None`` for no block.
        prediction: ``"unet"``, or ``"mean"`` for the mean of the context, which has neither channels nor block: what a
            network must beat.
        score: error of the prediction, ``"l1"``, ``"l2"``, ``"ssim"`` or ``"msgms"``, see
            :func:`~ssmctb_monai.networks.error_maps.error_map`.
        perturbation: step of a run before it is scored, see `Detector`.

    Raises:
        ValueError: when an argument is outside its range, or the channels are not those of a slice and its context.

    Example:
        >>> network = FuturePredictor(spatial_dims=2, in_channels=5)
        >>> network(torch.rand(4, 5, 64, 64)).shape
        torch.Size([4, 1, 64, 64])
        >>> network.eval()(torch.rand(1, 5, 50, 40)).shape
        torch.Size([1, 1, 50, 40])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128),
        block: Block = "ssmctb",
        prediction: Prediction = "unet",
        score: ErrorKind = "l1",
        perturbation: float = 0.0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, 2 ** (len(channels) - 1), score, perturbation)
        check_choice(get_args(Prediction), prediction=prediction)
        self.network: nn.Module
        if prediction == "mean":
            self.network = ContextMean(self.num_slices - 1)
        else:
            self.network = nn.Sequential(
                Encoder(spatial_dims, in_channels - out_channels, channels, norm=None),
                Decoder(spatial_dims, channels, out_channels, True, block, norm=None, transposed_kernel=2),
                nn.Tanh(),
            )

    def training_output(self, x: Tensor) -> Tensor:
        """Predicts the slice.

        Args:
            x: run of shape (batch, in_channels, height, width[, depth]).

        Returns:
            The slice, shape (batch, out_channels, height, width[, depth]).
        """
        return self.reconstruct(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Predicts the slice from its context alone.

        Args:
            x: run as in :meth:`training_output`.

        Returns:
            The slice, shape (batch, out_channels, height, width[, depth]).

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        return self.cut(self.network(self.context_of(x)), x)
