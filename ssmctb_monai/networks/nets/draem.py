"""DRAEM: a reconstructive and a discriminative sub-network, in 2D and 3D."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ssmctb_monai.checks import check_image, check_whole
from ssmctb_monai.networks.blocks.decoder import Decoder
from ssmctb_monai.networks.blocks.encoder import Encoder
from ssmctb_monai.networks.blocks.factory import Block
from ssmctb_monai.networks.nets.detector import Detector

BlockPlace = Literal["both", "reconstructive", "discriminative"]


class DRAEM(Detector):
    """Reconstructive and discriminative pair for surface, slice and volume anomaly detection.

    Zavrtanik et al., *DRAEM - A discriminatively trained reconstruction embedding for surface anomaly detection*,
    ICCV 2021, https://arxiv.org/abs/2108.07610; with a block in place of the penultimate convolution of both
    sub-networks, and in 3D, after Madan et al., TPAMI 46(1), 2024, https://arxiv.org/abs/2209.12148.

    The reconstructive sub-network (encoder and decoder, 5 stages of widths w, 2w, 4w, 8w, 8w, no skips) removes the
    anomaly; the discriminative one (U-Net of 6 stages of widths w, 2w, 4w, 8w, 8w, 8w) compares its reconstruction
    with the input. The paper's widths are 128 and 64.

    In training it returns the reconstruction and the logits, as `DRAEMLoss` takes them.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, that is of modalities.
        reconstructive_width: width w of the reconstructive sub-network.
        discriminative_width: width w of the discriminative sub-network.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of the
            penultimate convolution, norm and activation of a sub-network; ``"none"`` or ``None`` for no block.
        block_in: which sub-networks have the block: ``"both"``, as in the paper, ``"reconstructive"`` or
            ``"discriminative"``.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> network = DRAEM(spatial_dims=3, in_channels=2).eval()
        >>> network(torch.rand(1, 2, 40, 50, 30)).shape
        torch.Size([1, 1, 40, 50, 30])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        reconstructive_width: int = 16,
        discriminative_width: int = 16,
        block: Block = "ssmctb",
        block_in: BlockPlace = "both",
    ) -> None:
        reconstructive_widths = [factor * reconstructive_width for factor in (1, 2, 4, 8, 8)]
        discriminative_widths = [factor * discriminative_width for factor in (1, 2, 4, 8, 8, 8)]
        super().__init__(spatial_dims, in_channels, stride=2 ** (len(discriminative_widths) - 1))
        if block_in not in get_args(BlockPlace):
            raise ValueError(f"block_in must be one of {get_args(BlockPlace)}, got {block_in!r}.")
        check_whole(1, reconstructive_width=reconstructive_width, discriminative_width=discriminative_width)
        self.reconstructive = nn.Sequential(
            Encoder(spatial_dims, in_channels, reconstructive_widths),
            Decoder(
                spatial_dims,
                reconstructive_widths,
                out_channels=in_channels,
                block=None if block_in == "discriminative" else block,
            ),
        )
        self.discriminative = nn.Sequential(
            Encoder(spatial_dims, 2 * in_channels, discriminative_widths),
            Decoder(
                spatial_dims,
                discriminative_widths,
                out_channels=2,
                skip_connections=True,
                block=None if block_in == "reconstructive" else block,
            ),
        )

    def training_output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructs the lesion-free image and finds where the input differs from it.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]) of any size; it is padded to a multiple of 32
                inside, by repetition of its border. Batch norm needs more than one value a channel in the bottleneck: a
                batch of two or an image of more than 32 per axis.

        Returns:
            The reconstruction, of the shape of ``x``, and the logits (normal, anomaly) of shape
            (batch, 2, height, width[, depth]).
        """
        padded = self.padded(x)
        reconstruction = self.reconstructive(padded)
        logits = self.discriminative(torch.cat([reconstruction, padded], dim=1))
        return self.cut(reconstruction, x), self.cut(logits, x)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds the probability of an anomaly at each voxel.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        _, logits = self.training_output(x)
        return torch.softmax(logits, dim=1)[:, 1:]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructs the lesion-free image alone.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The reconstruction, of the shape of ``x``.

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        return self.cut(self.reconstructive(self.padded(x)), x)
