"""Any reconstruction network as an anomaly detector."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ssmctb_monai.checks import check_image
from ssmctb_monai.networks.blocks import block_score, named_blocks
from ssmctb_monai.networks.error_maps import ErrorKind, error_map
from ssmctb_monai.networks.nets.detector import Detector

Score = ErrorKind | Literal["block"]


class ReconstructionDetector(Detector):
    """Anomaly detection by what a network trained on lesion-free images fails to reconstruct.

    Trains as the network does, and gives an anomaly map at evaluation: how far the reconstruction is from the image, or
    how far the output of the blocks within the network is from their input.

    It can be traced and exported. To be scripted the network must return one tensor, and the score be none of blocks.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, that is of modalities.
        network: maps an image of shape (batch, channels, height, width[, depth]) to its reconstruction, or to several
            things, the reconstruction first: MONAI's ``AutoEncoder`` and ``VQVAE``, `MaskedAutoencoder`, …
        score: ``"l1"``, ``"l2"``, ``"ssim"`` or ``"msgms"`` between image and reconstruction, clipped to [0, 1], see
            :func:`~ssmctb_monai.networks.error_maps.error_map`; or ``"block"``: the error of each SSPCAB or SSMCTB
            block, see :func:`~ssmctb_monai.networks.blocks.block_score`.
        stride: what the sizes that the network takes are multiples of; images are padded to it inside.
        perturbation: step of an image before it is scored, see `Detector`.

    Raises:
        ValueError: when ``score`` is unknown, or is ``"block"`` and the network contains no block, or a number is
            outside its range.

    Example:
        >>> network = AutoEncoder(spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16), strides=(2, 2))
        >>> detector = ReconstructionDetector(spatial_dims=3, in_channels=1, network=network, stride=4).eval()
        >>> detector(torch.rand(1, 1, 32, 30, 27)).shape
        torch.Size([1, 1, 32, 30, 27])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        network: nn.Module,
        score: Score = "l1",
        stride: int = 1,
        perturbation: float = 0.0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, stride, perturbation)
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

    def training_output(self, x: Tensor) -> Any:
        """Runs the network.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]), with values in [0, 1].

        Returns:
            What the network returns; what has the size of the padded image is cut to that of ``x``.
        """
        padded = self.padded(x)

        def cut(output: Any) -> Any:
            if isinstance(output, tuple | list):
                return type(output)(cut(part) for part in output)
            return self.cut(output, x) if output.shape[2:] == padded.shape[2:] else output

        output = self.network(padded)
        return output if padded.shape == x.shape else cut(output)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds what is not reconstructed well.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops the outer branch only as it stands)
            if self.score == "block":
                return self.cut(block_score(self.network, self.padded(x)), x)
        return error_map(self.reconstruct(x).clamp(0, 1), x, self.score)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructs the image alone.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The reconstruction, of the shape of ``x``.

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels, or the reconstruction another shape.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        padded = self.padded(x)
        reconstruction = self._first(self.network(padded))
        if reconstruction.shape != padded.shape:
            raise ValueError(
                f"The reconstruction {list(reconstruction.shape)} must have the shape of the image "
                f"{list(padded.shape)}: give the stride that the network's sizes are multiples of."
            )
        return self.cut(reconstruction, x)

    def _first(self, output: Any) -> Tensor:
        if not torch.jit.is_scripting():
            return output if isinstance(output, Tensor) else output[0]
        assert isinstance(output, Tensor)  # for TorchScript, where a network does not say what it returns
        return output
