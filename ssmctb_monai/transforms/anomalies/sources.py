"""Sources of synthetic anomalies: what they consist of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import PathLike
from scipy.ndimage import distance_transform_edt
from skimage.io import imread
from skimage.util import img_as_float32
from torch import Tensor

from ssmctb_monai.checks import check_ranges, check_shares
from ssmctb_monai.data.brats import canonical_modalities
from ssmctb_monai.transforms.anomalies.parts import AnomalySource, drawn_voxel
from ssmctb_monai.transforms.anomalies.perlin_noise import RandPerlinNoise
from ssmctb_monai.transforms.modalities import has_modality

# Shares of lesions that are brighter and darker than the tissue around; the others do not show. Oedema and gliosis hold
# water, bright on T2 and FLAIR and dark on T1; FLAIR suppresses free fluid alone. On T1ce what takes up contrast is
# bright, and oedema and necrosis are dark or do not show.
LESION_CONTRAST = {"flair": (0.9, 0.0), "t1": (0.1, 0.6), "t1ce": (0.2, 0.4), "t2": (0.8, 0.1)}
# Share of a source that is tissue in NSA, and how often a source is drawn until it is
_LEAST_TISSUE, _DRAWS = 0.7, 20
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}


class OffsetSource(AnomalySource):
    """The image plus an offset, up or down, with a low-frequency texture; drawn for each channel by itself.

    Every argument but ``cells`` is one for all channels, or a sequence with one per channel, so that an anomaly may
    be bright on FLAIR and bright, dark or absent on T1ce.

    Args:
        offset: least and largest offset, in units of the image.
        brighter: probability that an offset is upwards; ``None``: that of lesions in the ``modalities``
            (`LESION_CONTRAST`), else 0.5.
        presence: probability that a channel has an offset; it is drawn again where no channel would have one. ``None``:
            that of lesions in the ``modalities``, else 1. A modality that the image lacks (`has_modality`) has none.
        texture: largest standard deviation of the texture, as a share of the offset; drawn from 0.
        cells: least and largest number of cells per axis of the image, of the texture's noise.
        modalities: names of the channels, of ``"flair"``, ``"t1"``, ``"t1ce"`` and ``"t2"``, or of colours, in which
            either is as likely.

    Raises:
        ValueError: when an argument is outside its range, or a modality is not known.

    Example:
        >>> OffsetSource(offset=[[0.03, 0.3], [0.03, 0.2]], brighter=[0.9, 0.35], presence=[1.0, 0.6])
        >>> OffsetSource(modalities=["flair", "t1ce"])
    """

    def __init__(
        self,
        offset: Sequence[float] | Sequence[Sequence[float]] = (0.05, 0.4),
        brighter: float | Sequence[float] | None = None,
        presence: float | Sequence[float] | None = None,
        texture: float | Sequence[float] = 0.5,
        cells: tuple[float, float] = (1, 8),
        modalities: Sequence[str] | str | None = None,
    ) -> None:
        names = () if modalities is None else canonical_modalities(modalities)
        if brighter is None:
            contrasts = [LESION_CONTRAST.get(name, (0.5, 0.5)) for name in names]  # colours: either way
            brighter = [up / (up + down) for up, down in contrasts] or 0.5
        if presence is None:  # an anomaly shows somewhere, and so in an only channel
            presence = [sum(LESION_CONTRAST.get(name, (0.5, 0.5))) for name in names] if len(names) > 1 else 1.0
        for pair in np.reshape(offset, (-1, 2)):
            check_ranges(np.inf, offset=tuple(pair.tolist()))
        for name, values in (("brighter", brighter), ("presence", presence)):
            for value in np.ravel(values):
                check_shares(**{name: value})
        if np.max(presence) == 0:
            raise ValueError("presence must be above 0 in a channel at least: no anomaly would change anything.")
        if np.min(texture) < 0:
            raise ValueError(f"texture must not be negative, got {texture}.")
        self.offset = offset
        self.brighter = brighter
        self.presence = presence
        self.texture = texture
        self.noise = RandPerlinNoise(cells, octaves=2)

    def _per_channel(self, name: str, channels: int) -> np.ndarray:
        values = np.asarray(getattr(self, name), dtype=float)
        shape = (channels, 2) if name == "offset" else (channels,)
        if values.ndim == len(shape) and len(values) != channels:
            raise ValueError(f"{name} is given for {len(values)} channels, but the image has {channels}.")
        return np.broadcast_to(values, shape)

    def _presence(self, image: Tensor) -> np.ndarray:
        return self._per_channel("presence", len(image)) * has_modality(image).cpu().numpy()

    def shows_in(self, image: Tensor) -> bool:
        """Tells whether one of the channels that may have an offset is there."""
        return bool(self._presence(image).any())

    def __call__(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        """Draws a source, as `AnomalySource` describes it."""
        channels = len(image)
        presence, brighter = self._presence(image), self._per_channel("brighter", channels)
        if not presence.any():
            raise ValueError(f"presence is 0 in every modality that the image has: {self.presence}.")
        signs = np.zeros(channels)
        while not signs.any():
            draw = self.R.uniform(size=channels)
            signs = np.where(draw < presence * brighter, 1, np.where(draw < presence, -1, 0))
        offsets = self.R.uniform(*self._per_channel("offset", channels).T) * signs
        source = image.to(torch.promote_types(image.dtype, torch.float32), copy=True)
        for channel, (offset, texture) in enumerate(zip(offsets, self._per_channel("texture", channels), strict=True)):
            if offset:
                share = self.R.uniform(0, texture)
                source[channel] += float(offset) * (1 + share * self.noise(region.shape, image.device))
        return source


class NestedSource(AnomalySource):
    """A source with another one in its middle, as oedema has an enhancing rim or a core within.

    Where the image lacks all modalities that show the middle, the outer source is all there is.

    Args:
        outer: source of the anomaly.
        inner: source of its middle, on top of the outer one; may be nested again.
        depth: least and largest depth at which the middle begins, as a share of the largest distance to the anomaly's
            border; drawn uniformly.

    Raises:
        ValueError: when ``depth`` is outside (0, 1].

    Example:
        >>> rim = OffsetSource(presence=[0, 1], brighter=1)  # on T1ce alone
        >>> NestedSource(OffsetSource(modalities=["flair", "t1ce"]), inner=rim)
    """

    def __init__(self, outer: AnomalySource, inner: AnomalySource, depth: tuple[float, float] = (0.2, 0.8)) -> None:
        check_ranges(1, depth=depth)
        self.outer = outer
        self.inner = inner
        self.depth = depth

    def shows_in(self, image: Tensor) -> bool:
        """Tells whether the outer source can show."""
        return self.outer.shows_in(image)

    def __call__(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        """Draws a source, as `AnomalySource` describes it."""
        source = self.outer(image, region, donors)
        if not self.inner.shows_in(image):
            return source
        padded = F.pad(region, [1, 1] * region.dim()).cpu().numpy()  # the border of the image is one, too
        distance = torch.from_numpy(distance_transform_edt(padded)).to(image.device)
        distance = distance[(slice(1, -1),) * region.dim()]
        middle = distance >= self.R.uniform(*self.depth) * distance.max()
        return torch.where(middle, self.inner(source, middle, donors), source)


class _MixedSource(AnomalySource):
    """A source that is mixed with the image.

    Args:
        opacity: least and largest share of the source, drawn uniformly.
    """

    def __init__(self, opacity: tuple[float, float]) -> None:
        check_ranges(1, opacity=opacity)
        self.opacity = opacity

    @abstractmethod
    def _content(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        """Draws what is mixed with the image, of its shape or with one channel."""

    def __call__(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        """Draws a source, as `AnomalySource` describes it."""
        content = self._content(image, region, donors)
        return image + self.R.uniform(*self.opacity) * (content - image)


class TextureSource(_MixedSource):
    """Fractal Perlin noise in [0, 1], drawn for each channel.

    Args:
        opacity: least and largest share of the texture in a mixture with the image, drawn uniformly.
        cells: least and largest number of cells per axis of the image, of the coarsest noise.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(self, opacity: tuple[float, float] = (0.2, 1.0), cells: tuple[float, float] = (1, 8)) -> None:
        super().__init__(opacity)
        self.noise = RandPerlinNoise(cells, octaves=2)

    def _content(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        textures = []
        for _ in image:
            noise = self.noise(region.shape, image.device)
            least, largest = noise.aminmax()
            textures.append((noise - least) / (largest - least).clamp_min(torch.finfo(noise.dtype).tiny))
        return torch.stack(textures)


class AnotherPlaceSource(_MixedSource):
    """Tissue of the same image from at least a quarter of its size away, flipped at random; without background.

    At least 0.7 of the anomaly are tissue, where one of 20 draws is so; the rest is filled in.

    Args:
        opacity: least and largest share of the other place in a mixture with the image, drawn uniformly.
        jitter: largest change of brightness (a factor) and of contrast (a factor about the mean over the anomaly), both
            drawn uniformly from 1 - ``jitter`` to 1 + ``jitter``.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(self, opacity: tuple[float, float] = (0.2, 1.0), jitter: float = 0.0) -> None:
        super().__init__(opacity)
        check_shares(jitter=jitter)
        self.jitter = jitter

    def _content(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        content = _moved(image, region, self.R, least_shift=0.25)
        if self.jitter:
            brightness, contrast = self.R.uniform(1 - self.jitter, 1 + self.jitter, size=2)
            mean = content[:, region].float().mean(1).reshape(-1, *[1] * region.dim())
            content = brightness * (mean + contrast * (content - mean))
        return content


class DonorSource(_MixedSource):
    """Tissue of another case, flipped at random; without background.

    At least 0.7 of the anomaly are tissue, where one of 20 draws is so; the rest is filled in. In a modality that the
    donor lacks it is the image itself.

    Args:
        opacity: least and largest share of the donor in a mixture with the image, drawn uniformly.
        rescale: least and largest ratio of the donor's mean over the anomaly to the image's, drawn uniformly, by which
            the donor is scaled in each channel; ``None``: it stays as it is.
        zoom: least and largest magnification of the donor, to which a draw of mean 1 and standard deviation 0.5 is
            limited.
        same_place: whether the tissue is that of the same place, neither flipped nor magnified, as it stands. Of crops
            and slices it is the same place of the crop: cut them where the image was cut.

    Raises:
        ValueError: when an argument is outside its range, or there is no other image to draw from.

    Example:
        >>> RandAnomaly(2, sources=DonorSource(rescale=(1.0, 3.0)))(batch, brains)
    """

    def __init__(
        self,
        opacity: tuple[float, float] = (0.2, 1.0),
        rescale: tuple[float, float] | None = None,
        zoom: tuple[float, float] | None = None,
        same_place: bool = False,
    ) -> None:
        super().__init__(opacity)
        for name, limits in (("rescale", rescale), ("zoom", zoom)):
            if limits is not None:
                check_ranges(np.inf, **{name: limits})
        if same_place and zoom is not None:
            raise ValueError(f"A donor of the same place is not magnified: leave out zoom, or same_place, got {zoom}.")
        self.rescale = rescale
        self.zoom = zoom
        self.same_place = same_place

    def _content(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        if len(donors) == 0:
            raise ValueError(
                "DonorSource takes anomalies from other images: give a batch of at least two, or donors (from a data "
                "set by LesionFreeDataset(donors=8))."
            )
        donor = donors[self.R.randint(len(donors))].to(image)
        if donor.dim() != image.dim() or len(donor) != len(image):
            raise ValueError(
                f"A donor has shape {tuple(donor.shape)}, the image {tuple(image.shape)}: channels and dimensions must "
                "be the same."
            )
        present = has_modality(donor)
        if not self.same_place:
            zoom = 1.0 if self.zoom is None else float(np.clip(self.R.normal(1, 0.5), *self.zoom))
            donor = _moved(donor, region, self.R, zoom=zoom)
        elif donor.shape != image.shape:
            raise ValueError(
                f"A donor has shape {tuple(donor.shape)}, the image {tuple(image.shape)}: places are the same "
                "only where shapes are."
            )
        if self.rescale is not None:
            means = [picture[:, region].mean(1, dtype=torch.float32) for picture in (image, donor)]
            ratio = self.R.uniform(*self.rescale) * means[0] / means[1].clamp_min(1e-3)
            donor = donor * ratio.reshape(-1, *[1] * region.dim())
        return torch.where(present.view(-1, *[1] * region.dim()), donor, image)


class FolderSource(_MixedSource):
    """Random crop of a random image of a folder, such as the Describable Textures Dataset, in grey values; 2D only.

    Args:
        folder: folder that is searched for images, with all its folders.
        opacity: least and largest share of the texture in a mixture with the image, drawn uniformly.

    Raises:
        ValueError: when an argument is outside its range, there is no image, or the sample is 3D.
    """

    def __init__(self, folder: PathLike, opacity: tuple[float, float] = (0.2, 1.0)) -> None:
        super().__init__(opacity)
        self.files = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in _IMAGE_SUFFIXES)
        if not self.files:
            raise ValueError(f"No image with a suffix of {sorted(_IMAGE_SUFFIXES)} in {folder}.")

    def _content(self, image: Tensor, region: Tensor, donors: Sequence[Tensor]) -> Tensor:
        if region.dim() == 3:
            raise ValueError("FolderSource gives 2D textures; in 3D use TextureSource.")
        file = self.files[self.R.randint(len(self.files))]
        texture = torch.as_tensor(img_as_float32(imread(file, as_gray=True)), device=image.device)
        zoom = max(1.0, *(wanted / have for wanted, have in zip(region.shape, texture.shape, strict=True)))
        size = [max(wanted, round(zoom * have)) for wanted, have in zip(region.shape, texture.shape, strict=True)]
        texture = F.interpolate(texture[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        first = [self.R.randint(have - wanted + 1) for have, wanted in zip(size, region.shape, strict=True)]
        return texture[tuple(slice(f, f + wanted) for f, wanted in zip(first, region.shape, strict=True))][None]


def _moved(
    image: Tensor, region: Tensor, random: np.random.RandomState, least_shift: float = 0.0, zoom: float = 1.0
) -> Tensor:
    """Flips an image at random and shifts it so that its tissue covers most of an anomaly, where a draw does so.

    Args:
        image: shape (channels, …).
        region: the anomaly, shape (…), which may differ from the image's; bool, not empty.
        random: random state.
        least_shift: least distance along an axis at least of what is put in a place from where it was, before it was
            flipped, as a share of the image's size; where there is tissue as far.
        zoom: magnification.

    Returns:
        Image of the region's shape; beyond its border it goes on at its other side, and its background, which is 0 in
        all channels, is filled with each channel's mean elsewhere, or anomalies would have holes.
    """
    flipped = [random.rand() < 0.5 for _ in region.shape]
    image = image.flip([axis for axis, is_flipped in enumerate(flipped, start=1) if is_flipped])
    is_tissue = (image != 0).any(0)
    mean = (image.flatten(1).sum(1, dtype=torch.float32) / is_tissue.count_nonzero().clamp_min(1)).to(image.dtype)
    filled = torch.where(is_tissue, image, mean.reshape(-1, *[1] * region.dim()))
    if zoom != 1:
        magnified = [max(1, round(zoom * have)) for have in is_tissue.shape]
        filled = F.interpolate(filled[None], magnified, mode="bilinear" if region.dim() == 2 else "trilinear")[0]
        is_tissue = F.interpolate(is_tissue[None, None].to(image.dtype), magnified, mode="nearest-exact")[0, 0] > 0
    voxels = region.nonzero()
    voxels = voxels[:: len(voxels) // 1000 + 1]  # enough to know a share by
    best, best_share = np.zeros(region.dim(), int), -1.0
    for _ in range(_DRAWS if is_tissue.any() else 0):
        here, there_is = drawn_voxel(region, random), is_tissue
        if least_shift:
            original = np.where(flipped, np.array(region.shape) - 1 - here, here)
            is_far_tissue = is_tissue & _is_far(is_tissue, original, least_shift)
            there_is = is_far_tissue if is_far_tissue.any() else is_tissue
        shift = drawn_voxel(there_is, random) - here
        share = _covered(is_tissue, voxels + torch.from_numpy(shift).to(voxels))
        if share > best_share:
            best, best_share = shift, share
        if share >= _LEAST_TISSUE:
            break
    for axis, (first, size) in enumerate(zip(best.tolist(), region.shape, strict=True), start=1):
        index = (torch.arange(size, device=image.device) + first) % filled.shape[axis]
        filled = filled.index_select(axis, index)
    return filled


def _covered(is_tissue: Tensor, places: Tensor) -> float:
    """Share of places (voxels, axes) that are tissue; beyond the border there is none."""
    sizes = torch.tensor(is_tissue.shape, device=places.device)
    inside = places[((places >= 0) & (places < sizes)).all(1)]
    return is_tissue[inside.unbind(1)].sum().item() / len(places)


def _is_far(image: Tensor, here: np.ndarray, least_shift: float) -> Tensor:
    """Where the way from a voxel, which may cross the border to the other side, is far along an axis at least."""
    is_far = torch.zeros_like(image, dtype=torch.bool)
    for axis, (place, size) in enumerate(zip(here.tolist(), image.shape, strict=True)):
        ways = (torch.arange(size, device=image.device) - place).abs()
        along = torch.minimum(ways, size - ways) >= least_shift * size
        is_far = is_far | along.reshape([-1 if other == axis else 1 for other in range(image.dim())])
    return is_far
