"""CutPaste: a classifier of pasted patches, whose features of normal images have a Gaussian density."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.checks import check_whole
from ssmctb_monai.networks.blocks.backbones import make_backbone
from ssmctb_monai.networks.blocks.factory import Block
from ssmctb_monai.networks.insertion import insert_block
from ssmctb_monai.networks.nets.detector import Detector


def ledoit_wolf_covariance(samples: Tensor) -> Tensor:
    """Estimates a covariance from few samples: that of the samples, shrunk towards a multiple of the identity.

    Ledoit and Wolf, *A well-conditioned estimator for large-dimensional covariance matrices*, Journal of Multivariate
    Analysis 88(2), 2004, https://doi.org/10.1016/S0047-259X(03)00096-4.

    Args:
        samples: shape (samples, features), at least two samples.

    Returns:
        Covariance, shape (features, features), invertible unless all samples are the same.

    Example:
        >>> precision = torch.linalg.inv(ledoit_wolf_covariance(torch.randn(20, 512)))
    """
    centred = samples - samples.mean(dim=0)
    count, features = centred.shape
    covariance = centred.T @ centred / count
    target = covariance.diagonal().mean() * torch.eye(features).to(covariance)
    distance = (covariance - target).square().sum()
    # Mean squared distance of x xᵀ from the covariance over the samples, that is mean |x|⁴ - |covariance|².
    error = (centred.square().sum(dim=1).square().mean() - covariance.square().sum()) / count
    shrinkage = (error / distance).clamp(0, 1) if distance > 0 else torch.zeros_like(distance)
    return (1 - shrinkage) * covariance + shrinkage * target


class CutPasteClassifier(Detector):
    """Finds anomalous images by features that have learnt to tell pasted patches from normal tissue.

    Li et al., *CutPaste: Self-supervised learning for anomaly detection and localization*, CVPR 2021,
    https://arxiv.org/abs/2104.04015, in 2D and 3D: a ResNet-18 and a small head classify images as the original, with a
    patch or with a scar. A Gaussian density is then fitted to the normalised features of normal images
    (:meth:`fit`, called by `FitDetector`). An image's score is the Mahalanobis distance d of its features from
    their mean, as d / (d + the median distance of normal images). A block stands in place of the penultimate
    convolution, after Madan et al., TPAMI 46(1), 2024, https://arxiv.org/abs/2209.12148.

    The map is the same everywhere in an image: how well it localises depends on the window, not on the network. Before
    the density is fitted the score is the probability of any class but the original. In training it returns logits, as
    ``torch.nn.CrossEntropyLoss`` takes them.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, that is of modalities.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, in place of the
            penultimate convolution; ``"none"`` or ``None`` for no block.
        num_classes: number of classes, the first of which is the original.
        encoder_width: number of channels of the encoder's first stage, an eighth of that of the features.
        head_layers: number of layers of the head that keep the number of features, before that with 128.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> network = CutPasteClassifier(spatial_dims=2)
        >>> network.fit([(normal_images, brains)])
        >>> network(images)
    """

    if TYPE_CHECKING:  # TorchScript would look for the type
        mean: Tensor
        precision: Tensor
        middle: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        block: Block = "ssmctb",
        num_classes: int = 3,
        encoder_width: int = 64,
        head_layers: int = 1,
    ) -> None:
        super().__init__(spatial_dims, in_channels)
        check_whole(2, num_classes=num_classes)
        check_whole(0, head_layers=head_layers)
        encoder, features = make_backbone("resnet18", spatial_dims, in_channels, encoder_width)
        self.encoder = insert_block(encoder, block, sample=[1, in_channels, *[64] * spatial_dims])
        widths = [features] * (head_layers + 1) + [128]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("precision", torch.eye(features))
        self.register_buffer("middle", torch.zeros(()))  # the median distance; 0: not fitted

    def training_output(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]) of any size; batch norm needs a batch of two.

        Returns:
            Logits, shape (batch, num_classes).
        """
        return self.head(self._features(x))

    def embed(self, x: Tensor) -> Tensor:
        """Computes what the density is one of.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            Features of length 1, shape (batch, features).
        """
        return F.normalize(self._features(x), dim=1)

    def _features(self, x: Tensor) -> Tensor:
        return self.encoder(x).flatten(2).mean(dim=2)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fits the density of normal images.

        Args:
            batches: normal images (batch, in_channels, height, width[, depth]), and masks of their brain, which do not
                count.

        Raises:
            ValueError: when there are fewer than two images, or all are the same.
        """
        training = self.training
        self.eval()
        embeddings = torch.cat([self.embed(image) for image, _ in batches])
        self.train(training)
        precise = embeddings.double()
        if len(precise) < 2 or not (precise != precise[0]).any():
            raise ValueError(f"A density takes at least two images that differ, got {len(precise)}.")
        self.mean.copy_(precise.mean(dim=0))
        self.precision.copy_(torch.linalg.inv(ledoit_wolf_covariance(precise)))
        self.middle.copy_(self.distance(embeddings).median())

    def distance(self, embeddings: Tensor) -> Tensor:
        """Computes Mahalanobis distances from the mean of the density.

        Args:
            embeddings: shape (batch, features).

        Returns:
            Distances, shape (batch).
        """
        centred = embeddings.float() - self.mean
        # No matrix product, which autocast would take in half precision: the precision has large and small entries
        return ((centred.unsqueeze(2) * self.precision).sum(dim=1) * centred).sum(dim=1).clamp(min=0).sqrt()

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Scores each image as a whole.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The anomaly map in [0, 1], the same everywhere in an image, shape (batch, 1, height, width[, depth]).
        """
        features = self._features(x)
        distance = self.distance(F.normalize(features, dim=1))
        unfitted = 1 - torch.softmax(self.head(features), dim=1)[:, 0]
        score = torch.where(self.middle > 0, distance / (distance + self.middle), unfitted)
        return score.reshape([-1] + [1] * (x.dim() - 1)).expand_as(x[:, :1]).contiguous()
