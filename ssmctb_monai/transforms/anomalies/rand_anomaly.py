"""Synthetic anomalies for training without lesions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple
from torch import Tensor

from ssmctb_monai.checks import check_shares, check_spatial_dims
from ssmctb_monai.transforms.anomalies.blends import SoftEdge
from ssmctb_monai.transforms.anomalies.labels import BinaryLabel
from ssmctb_monai.transforms.anomalies.parts import (
    AnomalyBlend,
    AnomalyLabel,
    AnomalyShape,
    AnomalySource,
    SeededTogether,
)
from ssmctb_monai.transforms.anomalies.shapes import PerlinShape
from ssmctb_monai.transforms.anomalies.sources import OffsetSource
from ssmctb_monai.transforms.modalities import has_modality


class RandAnomaly(SeededTogether, RandomizableTransform):
    """Puts synthetic anomalies into a lesion-free image: a shape, filled from a source, blended in, and its label.

    Channels of modalities that an image lacks, 0 throughout (`has_modality`), stay 0.

    Zavrtanik et al., *DRAEM*, ICCV 2021, https://arxiv.org/abs/2108.07610, is a `PerlinShape` with a `FolderSource`;
    the default is a `PerlinShape` with an `OffsetSource`.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3; tells a sample from a batch.
        prob: probability that an image gets anomalies; the others stay clean.
        shapes: shape, or shapes to draw from for each anomaly: `PerlinShape` (default), `EllipsoidShape`, `BoxShape`,
            `TissueShape`.
        sources: source, or sources to draw from for each anomaly: `OffsetSource` (default), `TextureSource`,
            `AnotherPlaceSource`, `DonorSource`, `FolderSource`, `NestedSource`.
        blend: how a source is put into the image; ``None``: `SoftEdge`.
        label: what is marked; ``None``: `BinaryLabel`.
        count: least and largest number of anomalies.

    Raises:
        ValueError: when an argument is outside its range.
        TypeError: when a part is of another kind.

    Example:
        >>> anomaly = RandAnomaly(3, prob=1.0, shapes=[PerlinShape(), EllipsoidShape()]).set_random_state(0)
        >>> corrupted, clean, mask = anomaly(image, brain)
    """

    def __init__(
        self,
        spatial_dims: int,
        prob: float = 0.5,
        shapes: AnomalyShape | Sequence[AnomalyShape] | None = None,
        sources: AnomalySource | Sequence[AnomalySource] | None = None,
        blend: AnomalyBlend | None = None,
        label: AnomalyLabel | None = None,
        count: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(prob)
        check_spatial_dims(spatial_dims)
        check_shares(prob=prob)
        if not 1 <= count[0] <= count[1]:
            raise ValueError(f"count must be two increasing numbers of at least 1, got {count}.")
        self.spatial_dims = spatial_dims
        self.shapes = _parts("shapes", PerlinShape() if shapes is None else shapes, AnomalyShape)
        self.sources = _parts("sources", OffsetSource() if sources is None else sources, AnomalySource)
        (self.blend,) = _parts("blend", SoftEdge() if blend is None else blend, AnomalyBlend)
        (self.label,) = _parts("label", BinaryLabel() if label is None else label, AnomalyLabel)
        self.count = count

    def __call__(
        self, image: Tensor, brain: Tensor | None = None, donors: Sequence[Tensor] | Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Corrupts an image or a batch.

        Args:
            image: shape (channels, …) or (batch, channels, …), in [0, 1], on any device.
            brain: mask of the same shape with one channel; anomalies lie inside it. ``None``: the whole image.
            donors: other images, each of shape (channels, …), for sources that take from them. ``None``: the other
                images of the batch.

        Returns:
            The corrupted image in [0, 1], the clean one, and the label of the anomalies with one channel, float32.

        Raises:
            ValueError: when shapes do not fit together.
        """
        is_batch = image.dim() == self.spatial_dims + 2
        if not is_batch and image.dim() != self.spatial_dims + 1:
            raise ValueError(
                f"Expected (channels, ...) or (batch, channels, ...) with {self.spatial_dims} spatial dimensions, "
                f"got shape {tuple(image.shape)}."
            )
        # Plain tensors: MONAI's carry their metadata through every operation, which took longer than the operations.
        plain = convert_to_tensor(image, track_meta=False)
        clean = plain if is_batch else plain[None]
        if brain is None:
            inside = torch.ones_like(clean[:, :1])
        else:
            inside = convert_to_tensor(brain if is_batch else brain[None], track_meta=False)
        if inside.shape != (clean.shape[0], 1, *clean.shape[2:]):
            raise ValueError(f"The brain mask has shape {tuple(inside.shape)}, the image {tuple(clean.shape)}.")
        if donors is not None:
            donors = [convert_to_tensor(donor, track_meta=False) for donor in donors]
        samples = list(clean)
        results = []
        for index, sample in enumerate(samples):
            others = samples[:index] + samples[index + 1 :] if donors is None else donors
            results.append(self._corrupt(sample, inside[index, 0] > 0, others))
        corrupted, label = (torch.stack(tensors) for tensors in zip(*results, strict=True))
        if not is_batch:
            corrupted, label = corrupted[0], label[0]
        return convert_to_dst_type(corrupted, image)[0], image, label

    def _number(self) -> int:
        """Draws the number of anomalies of an image."""
        return self.R.randint(self.count[0], self.count[1] + 1)

    def _corrupt(self, clean: Tensor, inside: Tensor, donors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Corrupts one image; returns it and the label."""
        image = clean
        factors = torch.zeros(inside.shape, device=inside.device)
        self.randomize(None)
        if self._do_transform and inside.any():
            present = has_modality(clean).view(-1, *[1] * inside.dim())
            for _ in range(self._number()):
                level = self.shapes[self.R.randint(len(self.shapes))](clean, inside)
                region = (level >= 0) & inside
                self.blend.randomize(None)
                source = self.sources[self.R.randint(len(self.sources))](image, region, donors)
                image = torch.where(present, self.blend(image, source, level, inside).clamp(0, 1), image)
                factors = torch.where(region, factors.clamp_min(self.blend.drawn_factor), factors)
        image = image.to(clean.dtype)
        return image, self.label(clean, image, factors)[None]


def _parts(name: str, parts: Any, kind: type) -> tuple[Any, ...]:
    parts = ensure_tuple(parts)
    if not parts or not all(isinstance(part, kind) for part in parts):
        raise TypeError(f"{name} must be of the kind {kind.__name__}, got {parts}.")
    return parts


class RandAnomalyd(SeededTogether, RandomizableTransform, MapTransform):
    """Dictionary-based `RandAnomaly`: the image is corrupted, the clean one and the label are added.

    Args:
        keys: key of the image.
        anomaly: the array transform.
        brain_key: key of the brain mask; where it is absent anomalies lie anywhere.
        clean_key: key of the clean image.
        mask_key: key of the anomalies' label.
        donors_key: key of the images of other cases, which are not handed on; where it is absent, donors are the other
            images of a batch.

    Raises:
        ValueError: when there is more than one key.

    Example:
        >>> RandAnomalyd("image", anomaly=RandAnomaly(spatial_dims=3))
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        anomaly: RandAnomaly,
        brain_key: str = "brain",
        clean_key: str = "image_clean",
        mask_key: str = "anomaly_mask",
        donors_key: str = "donors",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        if len(self.keys) != 1:
            raise ValueError(f"RandAnomalyd takes one key, got {self.keys}.")
        self.anomaly = anomaly
        self.brain_key = brain_key
        self.clean_key = clean_key
        self.mask_key = mask_key
        self.donors_key = donors_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Corrupts the image of an item or of a collated batch.

        Args:
            data: item or batch.

        Returns:
            The item with corrupted image, clean image and label.
        """
        item = dict(data)
        donors = item.pop(self.donors_key, None)
        for key in self.key_iterator(item):
            item[key], item[self.clean_key], item[self.mask_key] = self.anomaly(
                item[key], item.get(self.brain_key), donors
            )
        return item
