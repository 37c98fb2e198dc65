"""Prediction of a slice through a memory of normal features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, distributed, nn

from ssmctb_monai.checks import check_image, check_shares, check_whole
from ssmctb_monai.networks.blocks.decoder import Decoder
from ssmctb_monai.networks.blocks.encoder import Encoder, convolution
from ssmctb_monai.networks.blocks.factory import Block
from ssmctb_monai.networks.error_maps import ErrorKind, error_map
from ssmctb_monai.networks.nets.slice_predictor import SlicePredictor
from ssmctb_monai.networks.perturbation import perturbed


class Memory(nn.Module):
    """Items that normal features are read from, each of norm 1; they follow the features, without gradients.

    Args:
        num_items: number of items, at least 2.
        channels: number of channels of an item.

    Attributes:
        followed: items in place of those of the state dict at evaluation, if any.
    """

    if TYPE_CHECKING:  # TorchScript cannot read it
        items: Tensor

    def __init__(self, num_items: int, channels: int) -> None:
        super().__init__()
        check_whole(2, num_items=num_items)
        self.register_buffer("items", F.normalize(torch.rand(num_items, channels), dim=1))
        self.followed: Tensor | None = None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Reads.

        Args:
            features: shape (batch, channels, height, width[, depth]).

        Returns:
            The queries, which are the features of norm 1, with what is read for each, shape (batch, 2 · channels, …);
            and the mean squared difference of each query from the nearest item, shape (batch, 1, …).
        """
        queries, items = self._queries(features), self._unit_items()
        similarity = queries @ items.t()
        read = similarity.detach().softmax(dim=1) @ items
        distance = (queries - items[similarity.argmax(dim=1)]).square().mean(dim=1, keepdim=True)
        return self._image(torch.cat([queries, read], dim=1), features), self._image(distance, features)

    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finds the items that `MemoryLoss` compares features with.

        Args:
            features: shape (batch, channels, height, width[, depth]).

        Returns:
            The queries, the nearest item of each, and the second nearest, all (number of queries, channels).
        """
        queries, items = self._queries(features), self._unit_items()
        indices = (queries.detach() @ items.t()).topk(2, dim=1).indices
        return queries, items[indices[:, 0]], items[indices[:, 1]]

    @torch.inference_mode(False)  # perturbation takes gradients by what it returns
    @torch.no_grad()
    def updated(self, features: Tensor) -> Tensor:
        """Draws each item towards the queries that it is nearest to, by how near they are; over all processes.

        Args:
            features: shape (batch, channels, height, width[, depth]).

        Returns:
            The new items (num_items, channels).
        """
        queries, items = self._queries(features), self._unit_items()
        similarity = queries @ items.t()
        highest = similarity.amax(dim=0)
        is_shared = self.training and distributed.is_available() and distributed.is_initialized()
        if is_shared:
            distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        nearest = F.one_hot(similarity.argmax(dim=1), len(items))
        sums = (nearest * (similarity - highest).exp()).t() @ queries
        if is_shared:
            distributed.all_reduce(sums)
        return F.normalize(items + sums, dim=1)

    def _unit_items(self) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops the outer branch only as it stands)
            if self.followed is not None and not self.training:
                return self.followed
        return F.normalize(self.items.double(), dim=1)  # an average of weights also has one of items

    def _queries(self, features: Tensor) -> Tensor:
        """In double precision, which autocast keeps."""
        return F.normalize(_channels_last(features.double()).flatten(0, -2), dim=1)

    def _image(self, values: Tensor, features: Tensor) -> Tensor:
        image = values.view(list(_channels_last(features).shape[:-1]) + [values.shape[1]])  # noqa: RUF005 (TorchScript)
        return image.movedim(image.dim() - 1, 1).to(features.dtype)


def _channels_last(features: Tensor) -> Tensor:
    return features.movedim(1, features.dim() - 1)  # not -1, which ONNX does not take


class MemoryAutoencoder(SlicePredictor):
    """Predicts a slice from its context through a memory, and finds what differs from the prediction or the memory.

    Park et al., *Learning memory-guided normality for anomaly detection* (MNAD), CVPR 2020,
    https://arxiv.org/abs/2003.13228, on slices of a volume in place of frames: a U-Net with batch norm, whose coarsest
    features, of norm 1, are joined with what a memory of few items holds next to them. In training the items follow the
    features; `MemoryLoss` draws features to their nearest item and away from the second one. With a block in place of
    the penultimate convolution after Madan et al., TPAMI 46(1), 2024, https://arxiv.org/abs/2209.12148.

    The map adds the error of the prediction and the distance of the features from the memory, each relative to its mean
    in lesion-free images, which :meth:`fit` finds, where the paper stretches both over all of a test video. The items
    and both means are buffers. Images are runs of slices, see `FuturePredictor`.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3, where a run is of slabs.
        in_channels: number of input channels, those of the slice and of its context.
        out_channels: number of channels of a slice, that is of modalities.
        channels: channels of the stages, each of half the size of the one before; published are (64, 128, 256, 512).
        num_items: number of items of the memory.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of the
            penultimate convolution, its norm and activation; ``"none"`` or ``None`` for no block.
        score: error of the prediction, ``"l1"``, ``"l2"``, ``"ssim"`` or ``"msgms"``, see
            :func:`~ssmctb_monai.networks.error_maps.error_map`.
        distance_weight: share of the distance in the map, in [0, 1].
        update_below: regular score of a slice (:func:`regular_score`) below which the items follow it at evaluation,
            too, slice by slice, up to the next :meth:`begin_volume`; published is 0.01. With it the detector cannot be
            exported. ``None``: they never do.
        perturbation: step of a run before it is scored, see `Detector`.

    Raises:
        ValueError: when an argument is outside its range, or the channels are not those of a slice and its context.

    Example:
        >>> network = MemoryAutoencoder(spatial_dims=2, in_channels=5)
        >>> prediction, queries, nearest, second = network(torch.rand(4, 5, 64, 64))
        >>> network.eval()(torch.rand(1, 5, 50, 40)).shape
        torch.Size([1, 1, 50, 40])
    """

    if TYPE_CHECKING:  # TorchScript cannot read it
        normal_means: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128),
        num_items: int = 10,
        block: Block = "ssmctb",
        score: ErrorKind = "l1",
        distance_weight: float = 0.4,
        update_below: float | None = None,
        perturbation: float = 0.0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, 2 ** (len(channels) - 1), score, perturbation)
        check_shares(distance_weight=distance_weight, update_below=update_below or 0)
        self.encoder = Encoder(spatial_dims, in_channels - out_channels, channels)
        width = channels[-1]
        coarsest = self.encoder.stages[-1]
        assert isinstance(coarsest, nn.Sequential)
        coarsest[-1] = Conv[Conv.CONV, spatial_dims](width, width, kernel_size=3, padding=1)  # for queries of any sign
        self.memory = Memory(num_items, width)
        self.fuse = nn.Sequential(convolution(spatial_dims, 2 * width, width), convolution(spatial_dims, width, width))
        self.decoder = Decoder(spatial_dims, channels, out_channels, True, block, transposed_kernel=3)
        self.distance_weight = distance_weight
        self.update_below = update_below
        self.register_buffer("normal_means", torch.ones(2))

    def training_output(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predicts the slice, and lets the items follow.

        Args:
            x: run of shape (batch, in_channels, height, width[, depth]).

        Returns:
            The slice, shape (batch, out_channels, height, width[, depth]); queries, their nearest and their second
            nearest item before they follow, all (number of queries, channels).
        """
        features = self.encoder(self.context_of(x))
        prediction, _ = self._predict(features)
        queries, nearest, second = self.memory.nearest(features[-1])
        self.memory.items.copy_(self.memory.updated(features[-1].detach()))
        return self.cut(prediction, x), queries, nearest, second

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds what is not as predicted, or not as the memory has it.

        Args:
            x: run as in :meth:`training_output`.

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops the outer branch only as it stands)
            if self.update_below is not None:
                return torch.cat([self._followed_map(each, self.update_below) for each in x.split(1)])
        error, distance = self._differences(x, self.encoder(self.context_of(x)))
        return self._combined(error, distance)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Predicts the slice from its context alone.

        Args:
            x: run as in :meth:`training_output`.

        Returns:
            The slice, shape (batch, out_channels, height, width[, depth]).

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.in_channels)
        return self.cut(self._predict(self.encoder(self.context_of(x)))[0], x)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Finds the mean error and the mean distance in lesion-free brain.

        Args:
            batches: lesion-free runs (batch, in_channels, height, width[, depth]), and masks of the slice's brain
                (batch, 1, height, width[, depth]).

        Raises:
            ValueError: when no voxel counts.
        """
        training = self.training
        self.eval()
        self.begin_volume()
        sums, number = torch.zeros(2, dtype=torch.float64), 0
        for run, brain in batches:
            inside = brain > 0
            if self.perturbation > 0:
                run = perturbed(self, run, self.perturbation)  # as the map scores it
            differences = self._differences(run, self.encoder(self.context_of(run)))
            sums += torch.stack([each[inside].double().sum() for each in differences]).cpu()
            number += int(inside.sum())
        self.train(training)
        if not number:
            raise ValueError("There is no voxel of lesion-free brain to take the means of normal errors from.")
        self.normal_means.copy_(sums / number)

    def begin_volume(self) -> None:
        """Forgets how items have followed the slices of the last volume."""
        self.memory.followed = None

    def unexportable(self) -> str:
        """Says which argument makes evaluation do what no export can, and what to set it to; empty where none does."""
        return super().unexportable() if self.update_below is None else "update_below to None"

    def _predict(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Padded prediction, and distance of the coarsest features (batch, 1, …)."""
        read, distance = self.memory(features[-1])
        return torch.tanh(self.decoder(features[:-1] + [self.fuse(read)])), distance  # noqa: RUF005 (TorchScript)

    def _differences(self, x: Tensor, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Error and distance, both (batch, 1, …) of the size of ``x``."""
        prediction, distance = self._predict(features)
        error = error_map(self.cut(prediction, x).clamp(0, 1), self.slice_of(x), self.score)
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        return error, self.cut(F.interpolate(distance.float(), size=prediction.shape[2:], mode=mode), x)

    def _combined(self, error: Tensor, distance: Tensor) -> Tensor:
        means = self.normal_means.clamp_min(1e-12)
        relative = (1 - self.distance_weight) * error / means[0] + self.distance_weight * distance / means[1]
        return relative / (1 + relative)

    def _followed_map(self, x: Tensor, update_below: float) -> Tensor:
        """Map of one slice, which the items follow where it is regular."""
        features = self.encoder(self.context_of(x))
        anomaly_map = self._combined(*self._differences(x, features))
        prediction = self.cut(self._predict(features)[0], x).clamp(0, 1)
        # A blank run is one by which inferers find the shape of the map
        if x.any() and regular_score(prediction, self.slice_of(x)) < update_below:
            self.memory.followed = self.memory.updated(features[-1])
        return anomaly_map


def regular_score(prediction: Tensor, image: Tensor) -> Tensor:
    """Computes the mean squared error of a prediction, weighted by 1 - exp(-error).

    Park et al., CVPR 2020, https://arxiv.org/abs/2003.13228: low for frames that are as predicted.

    Args:
        prediction: image in [0, 1].
        image: image of the same shape.

    Returns:
        Scalar.

    Example:
        >>> regular_score(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5))
        tensor(0.2500)
    """
    error = (prediction - image).square()
    weights = 1 - torch.exp(-error)
    return (weights * error).sum() / weights.sum().clamp_min(1e-12)
