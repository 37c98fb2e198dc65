"""Masked autoencoder that gives images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import TransformerBlock
from monai.networks.nets import MaskedAutoEncoderViT
from monai.utils import ensure_tuple_rep, optional_import
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims

Rearrange, HAS_EINOPS = optional_import("einops.layers.torch", name="Rearrange")


def _cast_to_weights(module: nn.Linear, args: Any, output: Tensor) -> Tensor:
    return output.to(module.weight.dtype)


class MaskedAutoencoder(MaskedAutoEncoderViT):
    """MONAI's masked autoencoder as a reconstruction network: image in, image out.

    He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022, https://arxiv.org/abs/2111.06377.

    In training a random part of the patches is hidden, and the loss is that of the hidden ones
    (`MaskedReconstructionLoss`). At evaluation several passes hide different patches, and each patch is predicted by
    the passes that did not see it. Which patches are shown together is fixed, and stored in the state dict.

    A block that `insert_block` puts among the tokens, before the first transformer layer, predicts each token from its
    neighbours on the whole grid, before patches are hidden: through it the tokens that are shown hold something of
    hidden patches.

    Needs einops, an optional dependency of MONAI. Its modules, and the names of its weights, are those of MONAI's
    network. For export it is traced, not scripted, or taken by ``torch.export``.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of channels, that is of modalities.
        img_size: size of the images, all of them; one number for all axes or one each. A multiple of the patch size.
        patch_size: size of the patches; one number for all axes or one each.
        masking_ratio: part of the patches that is hidden, at least 0.5. Evaluation takes 1 / (1 - masking_ratio)
            passes, rounded.
        arguments: further arguments of MONAI's ``MaskedAutoEncoderViT``, by name: ``hidden_size``, ``mlp_dim``,
            ``num_layers``, ``num_heads``, ``decoder_hidden_size``, …

    Raises:
        ImportError: when einops is not installed.
        ValueError: when an argument is outside its range.

    Example:
        >>> network = MaskedAutoencoder(spatial_dims=2, in_channels=1, img_size=96, patch_size=8)
        >>> reconstruction, hidden = network(torch.rand(4, 1, 96, 96))
        >>> network.eval()(torch.rand(4, 1, 96, 96)).shape
        torch.Size([4, 1, 96, 96])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        masking_ratio: float = 0.75,
        **arguments: Any,
    ) -> None:
        if not HAS_EINOPS:
            raise ImportError("MaskedAutoencoder needs einops: pip install einops.")
        check_spatial_dims(spatial_dims)
        sizes, sides = ensure_tuple_rep(img_size, spatial_dims), ensure_tuple_rep(patch_size, spatial_dims)
        if any(size % side for size, side in zip(sizes, sides, strict=True)):
            raise ValueError(f"img_size must be a multiple of patch_size {sides}, got {sizes}.")
        super().__init__(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            img_size=img_size,
            patch_size=patch_size,
            masking_ratio=masking_ratio,
            **arguments,
        )
        for layer in (*self.blocks, *self.decoder_blocks):
            if isinstance(layer, TransformerBlock):
                # MONAI makes it but does not run it, and parameters without gradient stop DistributedDataParallel.
                layer.norm_cross_attn.requires_grad_(False)
        if masking_ratio < 0.5:
            raise ValueError(
                f"masking_ratio must be at least 0.5, got {masking_ratio}: evaluation hides every patch at least once."
            )
        num_patches = int(self.patch_embedding.n_patches)
        if int((1 - masking_ratio) * num_patches) < 1:
            raise ValueError(
                f"masking_ratio {masking_ratio} shows none of the {num_patches} patches of an image of {self.img_size}:"
                " lower it, or take smaller patches."
            )
        self.in_channels = in_channels
        self.num_passes = round(1 / (1 - masking_ratio))
        order = torch.randperm(num_patches, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        self.register_buffer("patch_order", order)
        # MONAI's forward puts these tokens into a tensor of the dtype of the weights, which autocast does not know.
        self.decoder_embed.register_forward_hook(_cast_to_weights)
        # The order of values within a patch is that of MONAI's embedding by a perceptron.
        patterns = {
            2: "batch (h w) (p1 p2 c) -> batch c (h p1) (w p2)",
            3: "batch (h w d) (p1 p2 p3 c) -> batch c (h p1) (w p2) (d p3)",
        }
        grid = {axis: size // side for axis, size, side in zip("hwd", self.img_size, self.patch_size, strict=False)}
        patch = dict(zip(("p1", "p2", "p3"), self.patch_size, strict=False))
        self.to_image = Rearrange(patterns[spatial_dims], **grid, **patch)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Reconstructs the image from a part of its patches.

        Args:
            x: image of shape (batch, channels, height, width[, depth]), of the size that the network was made for.

        Returns:
            In training mode the reconstruction, of the shape of ``x``, and where the patches were hidden, 1 or 0, of
            shape (batch, 1, height, width[, depth]). In evaluation mode the reconstruction, where the mean of the
            passes that did not see a patch is taken.

        Raises:
            ValueError: when ``x`` has another size.
        """
        if x.shape[1:] != (self.in_channels, *self.img_size):
            raise ValueError(
                f"Expected (batch, {', '.join(map(str, (self.in_channels, *self.img_size)))}), got {tuple(x.shape)}: "
                "the network takes the img_size that it was made for."
            )
        if self.training:
            _, shown, _ = super()._masking(x.new_empty((x.shape[0], self.patch_order.shape[0], 1)))
            predicted, hidden = self._predict(x, shown.to(x.device))
            return self.to_image(predicted), self._voxels(hidden)
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for shown in self.patch_order.tensor_split(self.num_passes):
            predicted, hidden = self._predict(x, shown.expand(x.shape[0], -1))
            total = total + predicted * hidden[..., None]
        return self.to_image(total / (self.num_passes - 1))  # each patch is shown once, and hidden in the other passes

    def _predict(self, x: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Values of all patches (batch, patches, values), and 1 for each that is hidden (batch, patches)."""
        predicted, hidden = super().forward(x, masking_ratio=shown)
        return predicted, hidden.to(x.dtype)

    def _voxels(self, patches: Tensor) -> Tensor:
        """A number a patch (batch, patches) as an image (batch, 1, …)."""
        return self.to_image(patches[..., None].expand(-1, -1, self.decoder_pred.out_features))[:, :1]

    def _masking(self, x: Tensor, masking_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes the tokens to show; MONAI's forward hands on its ``masking_ratio``, which carries their indices."""
        shown = masking_ratio
        hidden = torch.ones(x.shape[:2], dtype=torch.int, device=x.device).scatter(1, shown, 0)
        return x.gather(1, shown[..., None].expand(-1, -1, x.shape[2])), shown, hidden
