"""DRAEM: a reconstructive and a discriminative sub-network, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from ssmctb_monai.checks import check_positive, check_spatial_dims
from ssmctb_monai.networks.blocks.factory import BlockName, make_block

Block = BlockName | Callable[[int], nn.Module] | None
BlockPlace = Literal["both", "reconstructive", "discriminative"]


def _convolution(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    return Convolution(spatial_dims, in_channels, out_channels, adn_ordering="NA", norm="batch", act="relu", bias=False)


def _upsampling(spatial_dims: int) -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear" if spatial_dims == 2 else "trilinear", align_corners=True)


class _Encoder(nn.Module):
    """Stages of two convolutions each, max pooling between; returns the features of all stages."""

    def __init__(self, spatial_dims: int, in_channels: int, widths: list[int]) -> None:
        super().__init__()
        self.pool = Pool[Pool.MAX, spatial_dims](2)
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(spatial_dims, before, width), _convolution(spatial_dims, width, width))
            for before, width in zip([in_channels, *widths], widths, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.pool(x))
            features.append(x)
        return features


class _Decoder(nn.Module):
    """Stages of upsampling and three convolutions, then the output convolution.

    With skips, the encoder's features of the same resolution are concatenated after the upsampling. A block takes the
    place of the penultimate convolution, with its norm and activation.
    """

    def __init__(
        self, spatial_dims: int, widths: list[int], out_channels: int, skip_connections: bool, block: Block
    ) -> None:
        super().__init__()
        self.skip_connections = skip_connections
        coarse = widths[:0:-1]  # from the bottleneck up to the second finest stage
        fine = widths[-2::-1]
        self.up = nn.ModuleList(
            nn.Sequential(_upsampling(spatial_dims), _convolution(spatial_dims, below, below)) for below in coarse
        )
        stages = [
            [
                _convolution(spatial_dims, below + width if skip_connections else below, width),
                _convolution(spatial_dims, width, width),
            ]
            for below, width in zip(coarse, fine, strict=True)
        ]
        if block is not None:
            stages[-1][-1] = make_block(block, spatial_dims, widths[0])
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.output = Conv[Conv.CONV, spatial_dims](widths[0], out_channels, kernel_size=3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for index, (up, stage) in enumerate(zip(self.up, self.stages)):  # noqa: B905 (TorchScript knows no strict)
            x = up(x)
            if self.skip_connections:
                x = torch.cat([x, features[-2 - index]], dim=1)
            x = stage(x)
        return self.output(x)


class DRAEM(nn.Module):
    """Reconstructive and discriminative pair for surface, slice and volume anomaly detection.

    Zavrtanik et al., *DRAEM - A discriminatively trained reconstruction embedding for surface anomaly detection*,
    ICCV 2021, https://arxiv.org/abs/2108.07610; with a block in place of the penultimate convolution of both
    sub-networks, and in 3D, after Madan et al., TPAMI 46(1), 2024, https://arxiv.org/abs/2209.12148.

    The reconstructive sub-network (encoder and decoder, 5 stages of widths w, 2w, 4w, 8w, 8w, no skips) removes the
    anomaly; the discriminative one (U-Net of 6 stages of widths w, 2w, 4w, 8w, 8w, 8w) compares its reconstruction
    with the input. The paper's widths are 128 and 64.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, that is of modalities.
        reconstructive_width: width w of the reconstructive sub-network.
        discriminative_width: width w of the discriminative sub-network.
        block: ``None``, ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of
            the penultimate convolution, norm and activation of a sub-network.
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
        super().__init__()
        check_spatial_dims(spatial_dims)
        if block_in not in get_args(BlockPlace):
            raise ValueError(f"block_in must be one of {get_args(BlockPlace)}, got {block_in!r}.")
        check_positive(
            in_channels=in_channels,
            reconstructive_width=reconstructive_width,
            discriminative_width=discriminative_width,
        )
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        reconstructive_widths = [factor * reconstructive_width for factor in (1, 2, 4, 8, 8)]
        discriminative_widths = [factor * discriminative_width for factor in (1, 2, 4, 8, 8, 8)]
        self.stride = 2 ** (len(discriminative_widths) - 1)
        self.reconstructive = nn.Sequential(
            _Encoder(spatial_dims, in_channels, reconstructive_widths),
            _Decoder(
                spatial_dims,
                reconstructive_widths,
                out_channels=in_channels,
                skip_connections=False,
                block=None if block_in == "discriminative" else block,
            ),
        )
        self.discriminative = nn.Sequential(
            _Encoder(spatial_dims, 2 * in_channels, discriminative_widths),
            _Decoder(
                spatial_dims,
                discriminative_widths,
                out_channels=2,
                skip_connections=True,
                block=None if block_in == "reconstructive" else block,
            ),
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Reconstructs the lesion-free image and finds where the input differs from it.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]) of any size; it is padded to a multiple of 32
                inside, by repetition of its border. In training, batch norm needs more than one value a channel in the
                bottleneck: a batch of two or an image of more than 32 per axis.

        Returns:
            In training mode the reconstruction, of the shape of ``x``, and the logits (normal, anomaly) of shape
            (batch, 2, height, width[, depth]). In evaluation mode, and when exported, the anomaly map in [0, 1], shape
            (batch, 1, height, width[, depth]).

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        if x.dim() != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"Expected (batch, {self.in_channels}, ...) with {self.spatial_dims} spatial dimensions, got {x.shape}."
            )
        padded = self._padded(x)
        reconstruction = self.reconstructive(padded)
        logits = self.discriminative(torch.cat([reconstruction, padded], dim=1))
        reconstruction, logits = self._cut(reconstruction, x), self._cut(logits, x)
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops the outer branch only as it stands)
            if self.training:
                return reconstruction, logits
        return torch.softmax(logits, dim=1)[:, 1:]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructs the lesion-free image alone.

        Args:
            x: image as in :meth:`forward`.

        Returns:
            The reconstruction, of the shape of ``x``.
        """
        return self._cut(self.reconstructive(self._padded(x)), x)

    def _padded(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for axis in range(x.dim() - 1, 1, -1):
            padding += [0, -x.shape[axis] % self.stride]
        return F.pad(x, padding, mode="replicate")

    def _cut(self, padded: Tensor, x: Tensor) -> Tensor:
        for axis in range(2, x.dim()):
            padded = padded.narrow(axis, 0, x.shape[axis])
        return padded
