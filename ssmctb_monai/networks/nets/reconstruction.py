"""The reconstruction of a detector as a network of its own."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class _Reconstructs(Protocol):
    def reconstruct(self, x: Tensor) -> Tensor: ...


class Reconstruction(nn.Module):
    """The reconstruction of a detector as a network of its own, for inferers and MONAI's ``EnsembleEvaluator``.

    Args:
        network: the detector, such as `DRAEM` or `ReconstructionDetector`: a network with a method ``reconstruct``.
            Its weights are shared.

    Raises:
        TypeError: when the network has no such method.

    Example:
        >>> Reconstruction(DRAEM(spatial_dims=2, in_channels=3)).eval()(torch.rand(1, 3, 50, 40)).shape
        torch.Size([1, 3, 50, 40])
    """

    def __init__(self, network: _Reconstructs) -> None:
        super().__init__()
        if not hasattr(network, "reconstruct"):
            raise TypeError(
                f"{type(network).__name__} finds anomalies without a reconstruction: there is none to save. Leave out "
                "save_reconstruction, or take another system."
            )
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructs the lesion-free image.

        Args:
            x: image as the detector takes it.

        Returns:
            The reconstruction, of the shape of ``x``; of a run of slices that of the slice alone.
        """
        return self.network.reconstruct(x)
