"""Any reconstruction network as an anomaly detector."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.networks.blocks import SelfSupervisedBlock, named_blocks
from ssmctb_monai.networks.error_maps import ErrorKind, error_map

Score = ErrorKind | Literal["block"]


class ReconstructionDetector(nn.Module):
    """Anomaly detection by what a network trained on lesion-free images fails to reconstruct.

    Trains as the network does, and gives an anomaly map at evaluation: how far the reconstruction is from the image, or
    how far the output of the blocks within the network is from their input.

    It can be traced and exported. To be scripted the network must return one tensor, and the score be none of blocks.

    Args:
        network: maps an image of shape (batch, channels, height, width[, depth]) to its reconstruction, or to several
            things, the reconstruction first: MONAI's ``AutoEncoder`` and ``VQVAE``, `MaskedAutoencoder`, …
        score: ``"l1"``, ``"l2"``, ``"ssim"`` or ``"msgms"`` between image and reconstruction, clipped to [0, 1], see
            :func:`~ssmctb_monai.networks.error_maps.error_map`; or ``"block"``: the error e of each SSPCAB or SSMCTB
            block, resized to the image and averaged over blocks, as e / (1 + e).

    Raises:
        ValueError: when ``score`` is unknown, or is ``"block"`` and the network contains no block.

    Example:
        >>> network = AutoEncoder(spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16), strides=(2, 2))
        >>> detector = ReconstructionDetector(network, score="l1").eval()
        >>> detector(torch.rand(1, 1, 32, 32, 32)).shape
        torch.Size([1, 1, 32, 32, 32])
    """

    def __init__(self, network: nn.Module, score: Score = "l1") -> None:
        super().__init__()
        scores = (*get_args(ErrorKind), "block")
        if score not in scores:
            raise ValueError(f"score must be one of {', '.join(scores)}, got {score!r}.")
        if score == "block" and not named_blocks(network):
            raise ValueError(
                f'{type(network).__name__} contains no SSPCAB or SSMCTB block to score "block" by: insert one, or take '
                "another score."
            )
        self.network = network
        self.score = score

    def forward(self, x: Tensor) -> Any:
        """Reconstructs in training, and finds what is not reconstructed well at evaluation.

        Args:
            x: image of shape (batch, channels, height, width[, depth]), with values in [0, 1].

        Returns:
            In training mode what the network returns. In evaluation mode, and when exported, the anomaly map in [0, 1],
            shape (batch, 1, height, width[, depth]).

        Raises:
            ValueError: when the reconstruction has not the shape of ``x``.
        """
        if not torch.jit.is_scripting():
            if self.training:
                return self.network(x)
            if self.score == "block":
                return self._block_errors(x)
        return error_map(self.reconstruct(x).clamp(0, 1), x, self.score)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructs the image alone.

        Args:
            x: image as in :meth:`forward`.

        Returns:
            The reconstruction, of the shape of ``x``.
        """
        output = self.network(x)
        if not torch.jit.is_scripting():
            return output if isinstance(output, Tensor) else output[0]
        assert isinstance(output, Tensor)  # for TorchScript, where a network does not say what it returns
        return output

    @torch.jit.unused
    def _block_errors(self, x: Tensor) -> Tensor:
        """The mean e of the errors over blocks and passes, as e / (1 + e), (batch, 1, …)."""
        errors: list[Tensor] = []

        def keep_error(block: SelfSupervisedBlock, args: tuple[Tensor], output: Tensor) -> None:
            error = block._error(output, args[0]).mean(dim=1)
            if error.shape[0] % x.shape[0]:
                raise ValueError(f"A block ran on a batch of {error.shape[0]}, which is no multiple of {x.shape[0]}.")
            # Where a network repeats each image for several passes, the passes take the place of channels.
            passes = error.unflatten(0, (x.shape[0], -1))
            errors.append(F.interpolate(passes, x.shape[2:], mode="bilinear" if x.dim() == 4 else "trilinear"))

        hooks = [block.register_forward_hook(keep_error) for block in named_blocks(self.network).values()]
        try:
            self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not errors:
            raise ValueError(f"No block ran within {type(self.network).__name__}: take another score.")
        error = torch.cat(errors, dim=1).mean(dim=1, keepdim=True)
        return error / (1 + error)
