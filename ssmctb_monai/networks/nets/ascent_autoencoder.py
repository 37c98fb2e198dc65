"""Autoencoder that learns not to reconstruct synthetic anomalies, and a classifier of its error."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from ssmctb_monai.checks import check_image
from ssmctb_monai.networks.blocks.decoder import Decoder
from ssmctb_monai.networks.blocks.encoder import Encoder, convolution
from ssmctb_monai.networks.blocks.factory import Block
from ssmctb_monai.networks.nets.detector import Detector


class AscentAutoencoder(Detector):
    """Autoencoder trained with gradient ascent on synthetic anomalies, and a classifier of what it reconstructs badly.

    Georgescu et al., *A background-agnostic framework with adversarial training for abnormal event detection in video*,
    TPAMI 44(9), 2022, https://arxiv.org/abs/2008.12328; with a block in place of the penultimate convolution of the
    decoder after Madan et al., TPAMI 46(1), 2024, https://arxiv.org/abs/2209.12148.

    `AscentLoss` lowers the error on normal tissue and raises it on synthetic anomalies. An ascent has no end of its
    own: a sigmoid keeps the reconstruction in [0, 1], where images are, so that no error exceeds 1. The classifier sees
    the absolute error alone, and tells normal from abnormal at every voxel. It is trained beside the autoencoder,
    without changing it. The paper classifies crops of the objects that a detector finds, after the autoencoders are
    trained, also by their latent features and by motion.

    In training it returns the reconstruction and the logits, as `AscentLoss` takes them.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, that is of modalities.
        widths: channels of the encoder's stages, at least two, each of half the size of the one before; the last is the
            bottleneck. The classifier has those of the first.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of the
            penultimate convolution of the decoder, its norm and activation; ``"none"`` or ``None`` for no block.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> network = AscentAutoencoder(spatial_dims=3, in_channels=2).eval()
        >>> network(torch.rand(1, 2, 40, 50, 30)).shape
        torch.Size([1, 1, 40, 50, 30])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 32, 16, 16),
        block: Block = "ssmctb",
    ) -> None:
        super().__init__(spatial_dims, in_channels, stride=2 ** (len(widths) - 1))
        self.autoencoder = nn.Sequential(
            Encoder(spatial_dims, in_channels, widths),
            Decoder(spatial_dims, widths, out_channels=in_channels, block=block),
            nn.Sigmoid(),
        )
        self.classifier = nn.Sequential(
            convolution(spatial_dims, in_channels, widths[0]),
            convolution(spatial_dims, widths[0], widths[0]),
            Conv[Conv.CONV, spatial_dims](widths[0], 1, kernel_size=3, padding=1),
        )

    def training_output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructs the image and classifies the error.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]), with values in [0, 1].

        Returns:
            The reconstruction, of the shape of ``x``, and the logits of an anomaly, shape
            (batch, 1, height, width[, depth]), whose gradient does not reach the reconstruction.
        """
        reconstruction = self.reconstruct(x)
        return reconstruction, self.classifier((x - reconstruction).abs().detach())

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds the probability of an anomaly at each voxel.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        return self.training_output(x)[1].float().sigmoid()

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructs the image; what is anomalous comes back as something else, not as healthy tissue.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The reconstruction, of the shape of ``x``.

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        return self.cut(self.autoencoder(self.padded(x)), x)
