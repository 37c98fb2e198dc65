"""Synthetic anomalies for training without lesions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, PathLike
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from skimage.io import imread
from skimage.util import img_as_float32
from torch import Tensor

from ssmctb_monai.checks import check_shares, check_spatial_dims
from ssmctb_monai.transforms.perlin_noise import RandPerlinNoise

AnomalySource = Literal["intensity", "paste", "texture", "folder"]
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}


class RandPerlinAnomaly(RandomizableTransform):
    """Puts a synthetic anomaly, shaped by fractal Perlin noise, into a lesion-free image.

    Zavrtanik et al., *DRAEM*, ICCV 2021, https://arxiv.org/abs/2108.07610, in 2D and 3D: x' = (1 - m)x + m((1 - β)a +
    βx) with a mask m from thresholded noise and a source a. Here the threshold is the noise's quantile inside the brain
    that gives a drawn coverage, so no mask is empty, and m has a soft edge.

    Sources, one drawn per image:

    - ``"intensity"``: a is the image plus an offset, up or down, with a low-frequency texture, drawn per channel.
    - ``"paste"``: a is another image of the batch (or the same one, where there is one only) flipped and shifted.
    - ``"texture"``: a is fractal Perlin noise in [0, 1], drawn per channel.
    - ``"folder"``: a is a random crop of a random image in ``texture_folder`` (such as the Describable Textures
      Dataset), in grey values; 2D only.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3; tells a sample from a batch.
        prob: probability that an image gets an anomaly; the others stay clean.
        sources: sources to draw from.
        cells: least and largest number of cells per axis of the image, of the coarsest noise in masks and textures.
        coverage: least and largest share of the brain that an anomaly covers, drawn log-uniformly.
        offset: least and largest offset of ``"intensity"``, in units of the image.
        brighter: probability that an offset is upwards.
        opacity: least and largest 1 - β of the other sources; an offset is not mixed further (β = 0).
        edge: largest width of the soft edge, in standard deviations of the noise; drawn from 0.
        texture_folder: folder of images for ``"folder"``.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> anomaly = RandPerlinAnomaly(spatial_dims=3, prob=1.0).set_random_state(0)
        >>> corrupted, clean, mask = anomaly(image, brain)
    """

    def __init__(
        self,
        spatial_dims: int,
        prob: float = 0.5,
        sources: Sequence[AnomalySource] = ("intensity",),
        cells: tuple[float, float] = (1, 8),
        coverage: tuple[float, float] = (0.005, 0.2),
        offset: tuple[float, float] = (0.05, 0.4),
        brighter: float = 0.5,
        opacity: tuple[float, float] = (0.2, 1.0),
        edge: float = 0.5,
        texture_folder: PathLike | None = None,
    ) -> None:
        super().__init__(prob)
        check_spatial_dims(spatial_dims)
        check_shares(prob=prob, brighter=brighter)
        known = {"intensity", "paste", "texture", "folder"}
        if not sources or not known.issuperset(sources):
            raise ValueError(f"sources must be some of {sorted(known)}, got {list(sources)}.")
        for name, (least, largest), bound in (
            ("coverage", coverage, 1),
            ("offset", offset, np.inf),
            ("opacity", opacity, 1),
        ):
            if not 0 < least <= largest <= bound:
                raise ValueError(f"{name} must be two increasing numbers in (0, {bound}], got {(least, largest)}.")
        if edge < 0:
            raise ValueError(f"edge must not be negative, got {edge}.")
        self.texture_files: list[Path] = []
        if "folder" in sources:
            if spatial_dims == 3:
                raise ValueError("The source 'folder' gives 2D textures; in 3D use the source 'texture'.")
            if texture_folder is None:
                raise ValueError("The source 'folder' needs a texture_folder.")
            self.texture_files = sorted(
                f for f in Path(texture_folder).rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES
            )
            if not self.texture_files:
                raise ValueError(f"No image with a suffix of {sorted(_IMAGE_SUFFIXES)} in {texture_folder}.")
        self.spatial_dims = spatial_dims
        self.sources = tuple(sources)
        self.coverage = coverage
        self.offset = offset
        self.brighter = brighter
        self.opacity = opacity
        self.edge = edge
        self.shape_noise = RandPerlinNoise(cells)
        self.texture_noise = RandPerlinNoise(cells, octaves=2)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandPerlinAnomaly:
        """Seeds all random draws.

        Args:
            seed: seed.
            state: random state instead of a seed.

        Returns:
            The transform.
        """
        super().set_random_state(seed, state)
        for noise in (self.shape_noise, self.texture_noise):
            noise.set_random_state(state=self.R)
        return self

    def __call__(self, image: Tensor, brain: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Corrupts an image or a batch.

        Args:
            image: shape (channels, …) or (batch, channels, …), in [0, 1], on any device.
            brain: mask of the same shape with one channel; anomalies lie inside it. ``None``: the whole image.

        Returns:
            The corrupted image in [0, 1], the clean one, and the anomaly mask with one channel, 0 or 1, float32.

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
        results = [self._corrupt(clean, index, inside[index, 0] > 0) for index in range(len(clean))]
        corrupted, mask = (torch.stack(tensors) for tensors in zip(*results, strict=True))
        if not is_batch:
            corrupted, mask = corrupted[0], mask[0]
        return convert_to_dst_type(corrupted, image)[0], image, mask

    def _corrupt(self, batch: Tensor, index: int, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Corrupts one image of a batch; returns it and the mask."""
        image = batch[index]
        mask = torch.zeros(image.shape[1:], device=image.device)
        self.randomize(None)
        if not self._do_transform or not inside.any():
            return image, mask[None]
        noise = self.shape_noise(image.shape[1:], image.device)
        coverage = np.exp(self.R.uniform(*np.log(self.coverage)))
        values = noise[inside]
        marked = max(1, round(coverage * values.numel()))
        threshold = values.kthvalue(values.numel() + 1 - marked).values
        half_edge = max(self.R.uniform(0, self.edge) / 2, 1e-3)
        blend = ((noise - threshold) / (2 * half_edge) + 0.5).clamp(0, 1) * inside
        mask[(noise >= threshold) & inside] = 1
        source = self._source(batch, index)
        corrupted = (image + blend * (source - image)).clamp(0, 1)
        return corrupted.to(image.dtype), mask[None]

    def _source(self, batch: Tensor, index: int) -> Tensor:
        """The image to blend in, opacity included."""
        image = batch[index]
        kind = self.sources[self.R.randint(len(self.sources))]
        if kind == "intensity":
            return image + self._offset(image)
        if kind == "paste":
            anomaly = self._pasted(batch, index)
        elif kind == "texture":
            anomaly = torch.stack([self._unit_texture(image) for _ in image])
        else:
            anomaly = self._image_from_folder(image).expand_as(image)
        return image + self.R.uniform(*self.opacity) * (anomaly - image)

    def _offset(self, image: Tensor) -> Tensor:
        signs = np.where(self.R.uniform(size=len(image)) < self.brighter, 1, -1)
        offsets = self.R.uniform(*self.offset, size=len(image)) * signs
        textures = [
            1 + self.R.uniform(0, 0.5) * self.texture_noise(image.shape[1:], image.device) for _ in range(len(image))
        ]
        return torch.stack([float(offset) * texture for offset, texture in zip(offsets, textures, strict=True)])

    def _unit_texture(self, image: Tensor) -> Tensor:
        noise = self.texture_noise(image.shape[1:], image.device)
        return (noise - noise.amin()) / (noise.amax() - noise.amin()).clamp_min(torch.finfo(noise.dtype).tiny)

    def _pasted(self, batch: Tensor, index: int) -> Tensor:
        other = batch[(index + self.R.randint(1, len(batch))) % len(batch)] if len(batch) > 1 else batch[index]
        axes = list(range(1, other.dim()))
        flipped = other.flip([axis for axis in axes if self.R.rand() < 0.5])
        # At least a quarter of the image away, or the same place would be pasted onto itself.
        shifts = [int(size * self.R.uniform(0.25, 0.75)) for size in other.shape[1:]]
        return flipped.roll(shifts, axes)

    def _image_from_folder(self, image: Tensor) -> Tensor:
        file = self.texture_files[self.R.randint(len(self.texture_files))]
        texture = torch.as_tensor(img_as_float32(imread(file, as_gray=True)), device=image.device)
        target = image.shape[1:]
        zoom = max(1.0, *(wanted / size for wanted, size in zip(target, texture.shape, strict=True)))
        size = [max(wanted, round(zoom * have)) for wanted, have in zip(target, texture.shape, strict=True)]
        texture = F.interpolate(texture[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        first = [self.R.randint(have - wanted + 1) for have, wanted in zip(size, target, strict=True)]
        return texture[tuple(slice(f, f + wanted) for f, wanted in zip(first, target, strict=True))][None]


class RandPerlinAnomalyd(RandomizableTransform, MapTransform):
    """Dictionary-based `RandPerlinAnomaly`: the image is corrupted, the clean one and the mask are added.

    Args:
        keys: key of the image.
        anomaly: the array transform.
        brain_key: key of the brain mask; where it is absent anomalies lie anywhere.
        clean_key: key of the clean image.
        mask_key: key of the anomaly mask.

    Example:
        >>> RandPerlinAnomalyd("image", anomaly=RandPerlinAnomaly(spatial_dims=3))
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        anomaly: RandPerlinAnomaly,
        brain_key: str = "brain",
        clean_key: str = "image_clean",
        mask_key: str = "anomaly_mask",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        if len(self.keys) != 1:
            raise ValueError(f"RandPerlinAnomalyd takes one key, got {self.keys}.")
        self.anomaly = anomaly
        self.brain_key = brain_key
        self.clean_key = clean_key
        self.mask_key = mask_key

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandPerlinAnomalyd:
        """Seeds the anomalies.

        Args:
            seed: seed.
            state: random state instead of a seed.

        Returns:
            The transform.
        """
        super().set_random_state(seed, state)
        self.anomaly.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Corrupts the image of an item or of a collated batch.

        Args:
            data: item or batch.

        Returns:
            The item with corrupted image, clean image and mask.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key], item[self.clean_key], item[self.mask_key] = self.anomaly(item[key], item.get(self.brain_key))
        return item
