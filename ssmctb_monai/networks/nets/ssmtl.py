"""Several proxy tasks on stacks of slices by one convolutional transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from ssmctb_monai.checks import check_image, check_shares, check_whole
from ssmctb_monai.networks.blocks.decoder import Decoder
from ssmctb_monai.networks.blocks.encoder import Encoder, convolution
from ssmctb_monai.networks.blocks.factory import Block, make_block
from ssmctb_monai.networks.blocks.transformer_layer import TransformerLayer
from ssmctb_monai.networks.error_maps import error_map
from ssmctb_monai.networks.nets.detector import Detector


class SSMTL(Detector):
    """Restores hidden slices, and tells whether a stack of slices is as it should be.

    Barbalau et al., *SSMTL++: Revisiting self-supervised multi-task learning for video anomaly detection*, CVIU 2023,
    https://arxiv.org/abs/2207.08003, on slices of a volume, those along its last axis, in place of frames. One trunk, a
    convolutional transformer, answers four tasks, which `RandSliceTaskd` sets: restore the slices that are hidden; was
    the stack reversed; were slices skipped; have pieces of it changed places. Its tasks that need a detector of objects
    or a teacher are left out. With a block in place of the trunk's penultimate convolution after Madan et al., TPAMI
    46(1), 2024, https://arxiv.org/abs/2209.12148.

    The trunk is a convolutional encoder, transformer layers over the cells of its coarsest grid, and two convolutions.
    A decoder with skip connections restores; a convolution answers the three questions at every cell. There is no
    embedding of positions, which cells have from the borders of the convolutions, so that stacks have any size.

    The map is the mean of the tasks, as in the paper: the error of the restoration, each slice of which comes from a
    pass that hid it together with those around, and the probabilities that the stack, which nothing was done to, was
    reversed, has gaps, or was permuted, between the cells interpolated linearly.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3; in 2D slices are columns.
        in_channels: number of input channels, that is of modalities.
        channels: channels of the encoder's stages, each of half the size of the one before.
        num_layers: number of transformer layers.
        num_heads: number of heads of each.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of the
            trunk's penultimate convolution, its norm and activation; ``"none"`` or ``None`` for no block.
        num_hidden: largest number of slices that are hidden together, at most half of an image.
        question_share: share of the three questions in the map, in [0, 1]; 0: the error of the restoration alone.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> network = SSMTL(spatial_dims=3)
        >>> restored, logits = network(torch.rand(2, 1, 48, 48, 48))
        >>> network.eval()(torch.rand(1, 1, 50, 40, 30)).shape
        torch.Size([1, 1, 50, 40, 30])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        channels: Sequence[int] = (8, 16, 32, 64),
        num_layers: int = 2,
        num_heads: int = 4,
        block: Block = "ssmctb",
        num_hidden: int = 16,
        question_share: float = 0.75,
    ) -> None:
        super().__init__(spatial_dims, in_channels, stride=2 ** (len(channels) - 1))
        check_whole(1, num_layers=num_layers, num_heads=num_heads, num_hidden=num_hidden)
        check_shares(question_share=question_share)
        self.num_hidden = num_hidden
        self.question_share = question_share
        width = channels[-1]
        self.encoder = Encoder(spatial_dims, in_channels, channels)
        self.transformer = nn.Sequential(*(TransformerLayer(width, num_heads) for _ in range(num_layers)))
        penultimate = make_block(block, spatial_dims, width)
        self.mixing = nn.Sequential(
            convolution(spatial_dims, width, width) if penultimate is None else penultimate,
            convolution(spatial_dims, width, width),
        )
        self.decoder = Decoder(spatial_dims, channels, in_channels, skip_connections=True)
        self.questions = Conv[Conv.CONV, spatial_dims](width, 3, kernel_size=1)

    def training_output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Restores the image and answers the three questions.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]), with values in [0, 1].

        Returns:
            The image with what was hidden, of the shape of ``x``; and the logits that the stack was reversed, has gaps
            and was permuted, at every cell of the coarsest grid, shape (batch, 3, …).
        """
        features = self._trunk(self.padded(x))
        return self.cut(self.decoder(features), x), self.questions(features[-1])

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds what is not restored, and where the stack seems disturbed.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        error = error_map(self.reconstruct(x).clamp(0, 1), x, "l1")
        if self.question_share == 0:
            return error
        padded = self.padded(x)
        doubt = self.questions(self._trunk(padded)[-1]).float().sigmoid().mean(dim=1, keepdim=True)
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        doubt = self.cut(F.interpolate(doubt, size=padded.shape[2:], mode=mode), x)
        return (1 - self.question_share) * error + self.question_share * doubt

    def reconstruct(self, x: Tensor) -> Tensor:
        """Restores every slice, from an image that hides it.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The reconstruction, of the shape of ``x``.

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels, or one slice alone.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        size = x.shape[-1]
        if size < 2:
            raise ValueError(f"A stack of one slice has no others to restore it from, got shape {list(x.shape)}.")
        padded = self.padded(x)
        places = torch.arange(padded.shape[-1], device=x.device).clamp(max=size - 1)  # padding repeats the last
        number = max(2, -(-size // self.num_hidden))
        turn = (places * number).div(size, rounding_mode="floor")
        reconstruction = torch.zeros_like(padded)
        for index in range(number):
            hidden = turn == index
            restored = self.decoder(self._trunk(padded.masked_fill(hidden, 0.0)))
            reconstruction = torch.where(hidden, restored.to(x.dtype), reconstruction)
        return self.cut(reconstruction, x)

    def _trunk(self, padded: Tensor) -> list[Tensor]:
        """Features of all stages, the coarsest ones of the whole trunk."""
        features = self.encoder(padded)
        coarsest = features[-1]
        tokens = self.transformer(coarsest.flatten(2).transpose(1, 2))
        features[-1] = self.mixing(tokens.transpose(1, 2).reshape(coarsest.shape))
        return features
