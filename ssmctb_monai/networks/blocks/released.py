"""Reads checkpoints of the authors' PyTorch releases of SSPCAB and SSMCTB."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from monai.networks.blocks import ChannelSELayer
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from ssmctb_monai.networks.blocks.masked_convolution import MaskedConvolution
from ssmctb_monai.networks.blocks.self_supervised_block import SelfSupervisedBlock

# Name of each sub-kernel in the releases -> its corner: 0 is the low, 1 the high side of the first, second, ... axis.
_CORNERS: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"conv1": (0, 0), "conv2": (1, 0), "conv3": (0, 1), "conv4": (1, 1)},
    3: {
        "conv1": (0, 0, 1),
        "conv1_1": (0, 0, 0),
        "conv2": (1, 0, 1),
        "conv2_2": (1, 0, 0),
        "conv3": (0, 1, 1),
        "conv3_3": (0, 1, 0),
        "conv4": (1, 1, 1),
        "conv4_4": (1, 1, 0),
    },
}
_HEAD_DIM = 64  # of every head in the release of SSMCTB


class ReleasedChannelAttention(nn.Module):
    """Channel attention as the authors' release of SSMCTB computes it, which differs from the paper.

    One attention layer without norm, residual and MLP; the heads are concatenated and projected. See
    `ssmctb_monai.networks.blocks.ChannelTransformer` for the paper's. Parameters are named as in the release.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels, that is of tokens.
        pool_size: number of pooled values per axis.
        token_dim: length of a token.
        num_heads: number of heads of 64 entries each.
    """

    def __init__(self, spatial_dims: int, channels: int, pool_size: int, token_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = _HEAD_DIM
        self.pool = Pool[Pool.ADAPTIVEAVG, spatial_dims](pool_size)
        self.projection = nn.Linear(pool_size**spatial_dims, token_dim)
        self.pos_embedding = nn.Parameter(torch.zeros(1, channels, token_dim))
        self.mha = nn.ModuleDict(
            {
                "to_qkv": nn.Linear(token_dim, 3 * num_heads * _HEAD_DIM, bias=False),
                "to_out": nn.Sequential(nn.Linear(num_heads * _HEAD_DIM, token_dim)),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of ``x``.

        Args:
            x: shape (batch, channels, height, width[, depth]).

        Returns:
            Tensor of the shape of ``x``.
        """
        tokens = self.projection(self.pool(x).flatten(2)) + self.pos_embedding
        qkv = self.mha["to_qkv"](tokens).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2)
        gate = torch.sigmoid(self.mha["to_out"](heads).mean(dim=-1))
        return x * gate.view(list(gate.shape) + [1] * (x.dim() - 2))


def from_released(state_dict: Mapping[str, Tensor], dilation: int = 1) -> SelfSupervisedBlock:
    """Builds the block of a checkpoint of the authors' PyTorch releases.

    Reads SSPCAB (2D; https://github.com/ristea/sspcab) and SSMCTB (2D and 3D; https://github.com/ristea/ssmctb). Number
    of dimensions, channels and sub-kernel size follow from the shapes; the dilation is not in a checkpoint. The module
    reproduces the release's output, and its mean squared error as ``reconstruction_loss`` in training mode.

    Args:
        state_dict: the block's state dict, as the release saves it; a leading ``module.`` (data parallel) is ignored.
        dilation: dilation d ≥ 0 that the block was trained with.

    Returns:
        The block, in training mode as any new module.

    Raises:
        ValueError: when the keys or shapes are not those of a released block.

    Example:
        >>> block = from_released(torch.load("ssmctb.pth", weights_only=True)).eval()
    """
    if no_tensors := [name for name, value in state_dict.items() if not hasattr(value, "shape")]:
        raise ValueError(f"Not a block's state dict: {no_tensors} are no tensors. Is the state dict an entry of it?")
    state = {name.removeprefix("module."): torch.as_tensor(value).detach() for name, value in state_dict.items()}
    if "conv1.weight" not in state:
        raise ValueError(f"Not a released SSPCAB or SSMCTB block: no key 'conv1.weight' among {sorted(state)}.")
    spatial_dims = state["conv1.weight"].dim() - 2
    if spatial_dims not in _CORNERS:
        raise ValueError(f"'conv1.weight' has shape {tuple(state['conv1.weight'].shape)}, expected 4 or 5 dimensions.")
    names = [f"{conv}.{kind}" for conv in _CORNERS[spatial_dims] for kind in ("weight", "bias")]
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"Not a released {spatial_dims}D block: keys {missing} are missing.")
    convolution = _masked_convolution(state, spatial_dims, dilation)
    attention_state = {name: value for name, value in state.items() if name not in names}
    attention = _attention(attention_state, spatial_dims, channels=convolution.weight.shape[0])
    return SelfSupervisedBlock(convolution, attention, loss="mse").to(state["conv1.weight"].device)


def _masked_convolution(state: Mapping[str, Tensor], spatial_dims: int, dilation: int) -> MaskedConvolution:
    first = state["conv1.weight"]
    channels, _, size = first.shape[:3]
    convolution = MaskedConvolution(spatial_dims, channels, sub_kernel_size=size, dilation=dilation).to(first)
    weight, bias = torch.zeros_like(convolution.weight), first.new_zeros(channels)
    for conv, corner in _CORNERS[spatial_dims].items():
        sides = (slice(side * size, (side + 1) * size) for side in corner)
        window = (slice(None), slice(None), *sides)
        sub_kernel = weight[window]
        for name, expected in ((f"{conv}.weight", sub_kernel), (f"{conv}.bias", bias)):
            if state[name].shape != expected.shape:
                raise ValueError(f"'{name}' has shape {tuple(state[name].shape)}, expected {tuple(expected.shape)}.")
        sub_kernel.copy_(state[f"{conv}.weight"])
        bias += state[f"{conv}.bias"]  # the release adds one bias a corner
    convolution.load_state_dict({"weight": weight, "bias": bias})
    return convolution


def _attention(state: Mapping[str, Tensor], spatial_dims: int, channels: int) -> nn.Module:
    kinds = {name.split(".")[0] for name in state}
    prefix = kinds.pop() if len(kinds) == 1 else ""
    state = {name.removeprefix(f"{prefix}."): value for name, value in state.items()}
    attention: nn.Module
    try:
        if prefix == "se":
            hidden = state["fc1.weight"].shape[0]
            if hidden == 0:
                raise ValueError("'se.fc1.weight' has no hidden unit")
            attention = ChannelSELayer(spatial_dims, channels, r=channels // hidden)
            state = {name.replace("fc1", "fc.0").replace("fc2", "fc.2"): value for name, value in state.items()}
        elif prefix in ("transformer", "transformer_sspcab"):
            token_dim, pooled = state["projection.weight"].shape
            if spatial_dims == 3 and pooled != 1:
                raise ValueError(f"'{prefix}.projection.weight' takes {pooled} values; in 3D the release works with 1")
            attention = ReleasedChannelAttention(
                spatial_dims,
                channels,
                pool_size=round(pooled ** (1 / spatial_dims)),
                token_dim=token_dim,
                num_heads=state["mha.to_qkv.weight"].shape[0] // (3 * _HEAD_DIM),
            )
        else:
            raise KeyError("'se.*', 'transformer.*' or 'transformer_sspcab.*'")
        attention.to(next(iter(state.values())).dtype).load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        message = f"The attention of the checkpoint cannot be read: {error} (its keys: {sorted(state)})."
        raise ValueError(message) from error
    return attention
