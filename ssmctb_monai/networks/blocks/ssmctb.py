"""SSMCTB, the self-supervised masked convolutional transformer block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from monai.networks.layers.factories import Conv
from torch import nn

from ssmctb_monai.networks.blocks.channel_transformer import ChannelTransformer
from ssmctb_monai.networks.blocks.masked_convolution import MaskedConvolution, check_masked_kernel
from ssmctb_monai.networks.blocks.self_supervised_block import BlockLoss, SelfSupervisedBlock
from ssmctb_monai.networks.blocks.spatial_transformer import SpatialTransformer
from ssmctb_monai.networks.blocks.sspcab import squeeze_and_excitation

BlockAttention = Literal["none", "se", "channel", "spatial", "channel+spatial"]


class SSMCTB(SelfSupervisedBlock):
    """Self-supervised masked convolutional transformer block.

    Madan et al., *Self-Supervised Masked Convolutional Transformer Block for Anomaly Detection*, TPAMI 46(1), 2024,
    https://arxiv.org/abs/2209.12148. Masked convolution, ReLU and channel attention by a transformer; trained with the
    Huber error between its output and its input, kept in ``reconstruction_loss`` while training. The arguments reach
    every ablation of the paper.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of input and of output channels.
        sub_kernel_size: side k' of each corner sub-kernel.
        dilation: distance d between a sub-kernel and the masked centre.
        mask_size: side m of the masked centre, odd.
        masked: ``False`` gives the ablation's control instead of the masked convolution: an ordinary dilated
            convolution of 3 taps per axis that sees the centre and spans the same receptive field.
        attention: ``"none"``, ``"se"`` (squeeze-and-excitation), ``"channel"``, ``"spatial"`` or
            ``"channel+spatial"`` (one after the other).
        pool_size: channel attention: pooled values per channel and axis; 1 is the global mean.
        grid_size: spatial attention: grid cells per axis.
        token_dim: length d_t of a token.
        num_heads: number H of attention heads, summed.
        num_layers: number L of transformer layers.
        reduction_ratio: squeeze-and-excitation: channels per hidden unit.
        loss: error between output and input: ``"huber"``, ``"mse"``, ``"mae"`` or ``"ssim"``.
        delta: where the Huber error turns from quadratic to linear.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> block = SSMCTB(spatial_dims=3, channels=8)
        >>> block(torch.rand(1, 8, 16, 16, 16)).shape, block.reconstruction_loss.ndim
        (torch.Size([1, 8, 16, 16, 16]), 0)
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        sub_kernel_size: int = 1,
        dilation: int = 1,
        mask_size: int = 1,
        masked: bool = True,
        attention: BlockAttention = "channel",
        pool_size: int = 1,
        grid_size: int = 8,
        token_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        reduction_ratio: int = 8,
        loss: BlockLoss = "huber",
        delta: float = 1.0,
    ) -> None:
        convolution: nn.Module
        if masked:
            convolution = MaskedConvolution(spatial_dims, channels, sub_kernel_size, dilation, mask_size)
        else:
            check_masked_kernel(spatial_dims, channels, sub_kernel_size, dilation, mask_size)
            reach = sub_kernel_size + dilation + mask_size // 2
            convolution = Conv[Conv.CONV, spatial_dims](channels, channels, 3, padding=reach, dilation=reach)

        def channel_attention() -> nn.Module:
            return ChannelTransformer(spatial_dims, channels, pool_size, token_dim, num_heads, num_layers)

        def spatial_attention() -> nn.Module:
            return SpatialTransformer(spatial_dims, channels, grid_size, token_dim, num_heads, num_layers)

        attentions: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "se": lambda: squeeze_and_excitation(spatial_dims, channels, reduction_ratio),
            "channel": channel_attention,
            "spatial": spatial_attention,
            "channel+spatial": lambda: nn.Sequential(channel_attention(), spatial_attention()),
        }
        if attention not in attentions:
            raise ValueError(f"attention must be one of {list(attentions)}, got {attention!r}.")
        super().__init__(convolution, attentions[attention](), loss, delta)
