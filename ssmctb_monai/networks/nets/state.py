"""Reconstruction of a run of slices, which attend to one another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssmctb_monai.checks import check_image, check_whole
from ssmctb_monai.networks.blocks.decoder import Decoder
from ssmctb_monai.networks.blocks.encoder import Encoder
from ssmctb_monai.networks.blocks.factory import Block
from ssmctb_monai.networks.blocks.slice_attention import SliceAttention
from ssmctb_monai.networks.error_maps import ErrorKind
from ssmctb_monai.networks.nets.slice_predictor import SlicePredictor


class STATE(SlicePredictor):
    """Reconstructs a run of slices, and finds what differs from the reconstruction.

    Wang et al., *Making reconstruction-based method great again for video anomaly detection*, ICDM 2022,
    https://arxiv.org/abs/2301.12048, its branch of appearance, on slices of a volume in place of crops of frames: an
    encoder of each slice, layers of attention over the slices (`SliceAttention`), and a decoder of each slice, without
    skip connections. The branch of motion is left out: nothing moves. With a block in place of the penultimate
    convolution after Madan et al., TPAMI 46(1), 2024, https://arxiv.org/abs/2209.12148.

    Training reconstructs all slices of a run, the map is of the slice alone. Published is a ``perturbation`` of 0.002
    or 0.005 as well. Images are runs of slices, see `FuturePredictor`.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3, where a run is of slabs.
        in_channels: number of input channels, those of the slice and of its context.
        out_channels: number of channels of a slice, that is of modalities.
        channels: channels of the stages, each of half the size of the one before; published are (32, 64, 128).
        num_layers: number of layers of attention; published are 3 and 5.
        num_heads: number of heads of each.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of the
            penultimate convolution, its norm and activation; ``"none"`` or ``None`` for no block.
        score: error of the reconstruction, ``"l1"``, ``"l2"``, ``"ssim"`` or ``"msgms"``, see
            :func:`~ssmctb_monai.networks.error_maps.error_map`.
        perturbation: step of a run before it is scored, see `Detector`.

    Raises:
        ValueError: when an argument is outside its range, or the channels are not those of a slice and its context.

    Example:
        >>> network = STATE(spatial_dims=2, in_channels=7)
        >>> network(torch.rand(4, 7, 64, 64)).shape
        torch.Size([4, 7, 64, 64])
        >>> network.eval()(torch.rand(1, 7, 50, 40)).shape
        torch.Size([1, 1, 50, 40])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        num_layers: int = 3,
        num_heads: int = 4,
        block: Block = "ssmctb",
        score: ErrorKind = "l1",
        perturbation: float = 0.0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, 2 ** (len(channels) - 1), score, perturbation)
        check_whole(1, num_layers=num_layers)
        self.encoder = Encoder(spatial_dims, out_channels, channels)
        self.places = nn.Parameter(0.02 * torch.randn(self.num_slices, channels[-1], *[1] * spatial_dims))
        self.attention = nn.Sequential(
            *(SliceAttention(spatial_dims, channels[-1], num_heads) for _ in range(num_layers))
        )
        self.decoder = Decoder(spatial_dims, channels, out_channels, block=block)

    def training_output(self, x: Tensor) -> Tensor:
        """Reconstructs the run.

        Args:
            x: run of shape (batch, in_channels, height, width[, depth]).

        Returns:
            The run, of the shape of ``x``.
        """
        slices = self.padded(x).unflatten(1, [self.num_slices, self.out_channels])
        features = self.encoder(slices.flatten(0, 1))
        attended = self.attention(features[-1].unflatten(0, [x.shape[0], self.num_slices]) + self.places)
        features[-1] = attended.flatten(0, 1)
        return self.cut(self.decoder(features).view(slices.shape).flatten(1, 2), x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructs the slice, with the others of its run.

        Args:
            x: run as in :meth:`training_output`.

        Returns:
            The slice, shape (batch, out_channels, height, width[, depth]).

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        return self.slice_of(self.training_output(x))
