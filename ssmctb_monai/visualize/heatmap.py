"""A scan with its anomaly map, in memory, as a reader looks at it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst
from monai.utils import ImageMetaKey, convert_to_tensor, ensure_tuple
from nibabel.affines import voxel_sizes

from ssmctb_monai.data.brats import parse_file, volume_stem
from ssmctb_monai.data.oriented_case import OrientedCase, bounding_box, radiological
from ssmctb_monai.data.readers import SimpleITKReader
from ssmctb_monai.metrics.case_statistics import CaseTruth, slice_scores
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.transforms import BrainMaskd, CheckCased, SelectChannelsd
from ssmctb_monai.transforms.brain import source_name

KEYS = ("image", "anomaly_map", "label", "brain", "reconstruction")
RADIOLOGICAL = ("L", "P", "I")


@dataclass(frozen=True)
class Heatmap:
    """A scan with its anomaly map, turned so that radiological views need no flip.

    The first axis of all arrays runs from the patient's right to the left, the second from front to back, the third
    from head to feet (LPI): axial slices ``[:, :, k]`` and coronal ones ``[:, j, :]`` have the patient's right on the
    left of the screen, sagittal ones ``[i, :, :]`` the front, when the first axis that is left runs across the screen
    and the second down.

    Attributes:
        case_id: name of the scan.
        images: image of each modality, by its name.
        anomaly_map: scores; outside the brain the lowest score in it.
        label: lesion mask; ``None`` where there is none.
        brain: mask of the voxels that count: the brain, and lesions.
        reconstructions: reconstruction of each modality, by its name, in the image's intensities.
        affine: 4 x 4 matrix from voxels of these arrays to RAS coordinates in mm.
        scan_transform: 4 x 4 matrix of whole numbers from voxels of these arrays to those of the scan's own array.
        slices: a column each of ``slice`` (index from the feet up), ``score`` and ``lesion_voxels`` of the brain's
            axial slices, as in ``slices.csv`` of a report.
        settings: how slices are scored, and how small a component may be.
        threshold: threshold that came with the map; ``None`` where none did.
        map_file: file of the map; ``None`` where it is an array.
    """

    case_id: str
    images: Mapping[str, np.ndarray]
    anomaly_map: np.ndarray
    label: np.ndarray | None
    brain: np.ndarray
    reconstructions: Mapping[str, np.ndarray]
    affine: np.ndarray
    scan_transform: np.ndarray
    slices: Mapping[str, np.ndarray]
    settings: EvaluationSettings
    threshold: float | None
    map_file: Path | None

    @classmethod
    def of(
        cls,
        case: OrientedCase,
        slices: Mapping[str, np.ndarray],
        settings: EvaluationSettings,
        threshold: float | None = None,
        *,
        method: str | None = None,
        reconstructions: Mapping[str, np.ndarray] | None = None,
        map_file: Path | None = None,
    ) -> Heatmap:
        """Makes the heatmap of a case.

        Args:
            case: the case.
            slices: the brain's axial slices with their scores by this map.
            settings: those that the slices were scored by.
            threshold: threshold of the map.
            method: whose map is shown; the case's first one by default.
            reconstructions: reconstruction of each modality, turned as the case is.
            map_file: file of the map.

        Returns:
            The heatmap.
        """
        brain = radiological(case.brain)
        shown = case.anomaly_maps[method or next(iter(case.anomaly_maps))]
        scores = radiological(shown).astype(np.float32, copy=False)
        orientation = nib.orientations.ornt_transform(
            nib.io_orientation(case.affine), nib.orientations.axcodes2ornt(RADIOLOGICAL)
        )
        to_scan = nib.orientations.inv_ornt_aff(orientation, case.shape)
        return cls(
            case_id=case.case_id,
            images=_shown(case.images),
            anomaly_map=np.where(brain, scores, scores[brain].min()),
            label=None if case.label is None else radiological(case.label),
            brain=brain,
            reconstructions=_shown(reconstructions or {}),
            affine=case.affine @ to_scan,
            scan_transform=np.rint(to_scan).astype(int),
            slices=slices,
            settings=settings,
            threshold=threshold,
            map_file=map_file,
        )

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel along the three axes, in mm."""
        x, y, z = voxel_sizes(self.affine)
        return float(x), float(y), float(z)

    @cached_property
    def peak(self) -> tuple[int, int, int]:
        """Index of the highest score."""
        x, y, z = np.unravel_index(np.argmax(np.where(self.brain, self.anomaly_map, -np.inf)), self.brain.shape)
        return int(x), int(y), int(z)

    def box(self, margin: Sequence[int]) -> tuple[slice, slice, slice]:
        """Finds where the brain is.

        Args:
            margin: number of voxels around it along each axis, as far as the scan reaches.
        """
        x, y, z = (
            slice(max(0, span.start - extra), min(span.stop + extra, size))
            for span, extra, size in zip(bounding_box(self.brain), margin, self.brain.shape, strict=True)
        )
        return x, y, z

    def scan_voxel(self, voxel: Sequence[int]) -> tuple[int, int, int]:
        """Finds a voxel in the scan's own array.

        Args:
            voxel: index in these arrays.

        Returns:
            Index in the array of the scan's file.
        """
        own = self.scan_transform @ [*voxel, 1]
        return int(own[0]), int(own[1]), int(own[2])

    @property
    def scan_affine(self) -> np.ndarray:
        """4 x 4 matrix from voxels of the scan's own array to RAS coordinates in mm."""
        return self.affine @ np.linalg.inv(self.scan_transform)

    def to_scan(self, array: np.ndarray) -> np.ndarray:
        """Turns a volume as the scan's own array is.

        Args:
            array: turned as these arrays are.
        """
        return nib.orientations.apply_orientation(array, nib.io_orientation(self.scan_transform))

    def from_scan(self, array: np.ndarray) -> np.ndarray:
        """Turns a volume as these arrays are.

        Args:
            array: turned as the scan's own array is.
        """
        return nib.orientations.apply_orientation(array, nib.io_orientation(np.linalg.inv(self.scan_transform)))


def _shown(images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: radiological(image).astype(np.float32, copy=False) for name, image in images.items()}


def load_heatmap(item: Mapping[str, Any], settings: EvaluationSettings | None = None) -> Heatmap:
    """Loads a scan with its anomaly map, from files or arrays.

    Args:
        item: dictionary with

            - ``image``: file, list of files (one a modality) or DICOM folder, or array of shape
              ([channels,] height, width, depth);
            - ``anomaly_map``: file or array of one channel on the same grid; finite scores of any range in the brain;
            - optionally ``label``, ``brain`` (masks) and ``reconstruction``, also on this grid;
            - optionally ``case_id``, ``modalities`` (names of the image's channels), ``channels`` (those to take of a
              4D file), ``reconstruction_modalities`` (where they are not all of the image's), ``affine`` (4 x 4, from
              voxels to RAS in mm, of an image that is an array without one) and ``threshold``.

            Arrays without an affine lie where the image does.
            Without a brain mask the brain is what differs from the background, as in an evaluation.
        settings: those of the evaluation whose slices and components are meant.

    Returns:
        The heatmap.

    Raises:
        TypeError: the item is no dictionary.
        KeyError: image or anomaly map are missing.
        ValueError: shapes or affines differ, something is no volume, the map has several channels or NaN in the brain,
            the brain is empty, or names and channels do not match; the file is named.
        OSError: a file cannot be read.

    Example:
        >>> heatmap = load_heatmap({"image": "P1_flair.nii.gz", "anomaly_map": "maps/P1.nii.gz"})  # doctest: +SKIP
        >>> heatmap.anomaly_map[heatmap.peak]  # doctest: +SKIP
        0.97
    """
    loaded = _load(item)
    image, scores = loaded["image"], loaded["anomaly_map"]
    names = _modalities(item, len(image))
    reconstructed = _reconstructions(item, loaded, names)
    case = OrientedCase(
        case_name(item),
        {"map": scores.numpy()},
        loaded["label"].numpy() if "label" in loaded else None,
        loaded["brain"].numpy(),
        affine=image.affine.numpy(),
        images=dict(zip(names, image.numpy(), strict=True)),
    )
    if case.turn(loaded["undefined"].numpy()[0])[case.brain].any():
        raise ValueError(f"{source_name(scores)} holds NaN or infinite scores in the brain.")
    settings = settings or EvaluationSettings()
    truth = CaseTruth(case, settings)
    return Heatmap.of(
        case,
        truth.slice_table | {"score": slice_scores(case.cut(case.anomaly_maps["map"]), truth)},
        settings,
        _threshold(item.get("threshold")),
        reconstructions={name: case.turn(array) for name, array in reconstructed.items()},
        map_file=map_file(item),
    )


def check_item(item: Any) -> None:
    """Checks that an item is one, with image and map.

    Raises:
        TypeError: the item is no dictionary.
        KeyError: image or anomaly map are missing.
    """
    if not isinstance(item, Mapping):
        raise TypeError(f"A case is a dictionary, such as `find_maps` returns, not {type(item).__name__}.")
    if missing := [key for key in ("image", "anomaly_map") if item.get(key) is None]:
        raise KeyError(
            f"{item.get('case_id', 'The case')} lacks {', '.join(missing)}, got {', '.join(item) or 'nothing'}."
        )


def check_arrays(item: Mapping[str, Any]) -> None:
    """Checks that the arrays of an item have one shape, channels aside; files are checked when they are loaded.

    Raises:
        ValueError: they have not; the case, its keys and their shapes are named.
    """
    arrays = {key: item[key] for key in KEYS if isinstance(item.get(key), np.ndarray | torch.Tensor)}
    shapes = {key: tuple(array.shape) for key, array in arrays.items()}
    if len({shape[-3:] for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise ValueError(f"{case_name(item)} cannot be shown, its arrays have different shapes: {listed}.")


def map_file(item: Mapping[str, Any]) -> Path | None:
    """Returns the file of an item's anomaly map; ``None`` where it is an array."""
    source = item["anomaly_map"]
    return Path(source) if isinstance(source, str | PathLike) else None


def case_name(item: Mapping[str, Any]) -> str:
    """Names the case of an item: as told, else after the file of its map."""
    if item.get("case_id") not in (None, ""):
        return str(item["case_id"])
    file = map_file(item)
    return volume_stem(file) or file.name if file else "case"


def case_names(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names the cases of items that are shown together.

    Raises:
        ValueError: two have one name.
    """
    names = [case_name(item) for item in items]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"Several cases are named {', '.join(repeated)}: give each a `case_id` of its own.")
    return names


def load_volume(source: Any, affine: Any = None) -> MetaTensor:
    """Loads files, or takes an array, as 32-bit numbers with the channels first.

    Args:
        source: file, list of files or DICOM folder, or array of shape ([channels,] height, width, depth).
        affine: 4 x 4 matrix from voxels to RAS coordinates in mm of an array that has none.
    """
    if isinstance(source, np.ndarray):
        source = torch.from_numpy(source.astype(np.float32))  # PyTorch lacks some types, and the other byte order
    if isinstance(source, torch.Tensor):
        tensor = convert_to_tensor(source.detach(), dtype=torch.float32, device="cpu", track_meta=True)
        if affine is not None and not isinstance(source, MetaTensor):
            matrix = np.asarray(affine, dtype=float)
            if matrix.shape != (4, 4):
                raise ValueError(f"Expected an affine of shape (4, 4), got {matrix.tolist()}.")
            tensor.affine = torch.from_numpy(matrix)
        return tensor[None] if tensor.ndim == 3 else tensor
    reader = SimpleITKReader()  # LoadImage would answer its errors by other readers
    array, meta = reader.get_data(reader.read(source))
    meta[ImageMetaKey.FILENAME_OR_OBJ] = ", ".join(map(str, ensure_tuple(source)))
    return EnsureChannelFirst()(MetaTensor(array.astype(np.float32), meta=meta))


def _load(item: Mapping[str, Any]) -> dict[Hashable, Any]:
    """Loads and checks what an item names; also tells where scores are ``undefined``, and finds the brain."""
    check_item(item)
    loaded: dict[Hashable, Any] = {"image": load_volume(item["image"], item.get("affine"))}
    affine = loaded["image"].affine.numpy()
    if not abs(np.linalg.det(affine)) > 0:
        raise ValueError(f"{source_name(loaded['image'])} has an affine without an inverse: {affine.tolist()}.")
    loaded |= {key: load_volume(item[key], affine) for key in KEYS[1:] if item.get(key) is not None}
    scores = loaded["anomaly_map"]
    if len(scores) != 1:
        raise ValueError(f"{source_name(scores)} has {len(scores)} channels, but an anomaly map has one.")
    loaded["undefined"] = ~scores.isfinite()  # what is outside the brain may be
    loaded["anomaly_map"] = torch.where(loaded["undefined"], scores.new_zeros(()), scores)
    if item.get("channels") is not None:
        loaded["channels"] = item["channels"]
    checked = SelectChannelsd("image")(CheckCased(KEYS)(loaded))
    if "brain" not in checked:
        return BrainMaskd("image")(checked)
    if not checked["brain"].any():
        raise ValueError(f"The brain mask {source_name(checked['brain'])} is empty.")
    return checked | {"brain": checked["brain"] > 0.5}


def _reconstructions(
    item: Mapping[str, Any], loaded: Mapping[Hashable, Any], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Names the channels of a reconstruction, if there is one, by the modalities that they are of."""
    if "reconstruction" not in loaded:
        return {}
    reconstruction = loaded["reconstruction"].numpy()
    reconstructed = ensure_tuple(item.get("reconstruction_modalities") or names)
    if not len(reconstruction) == len(reconstructed) == len({*reconstructed} & {*names}):
        raise ValueError(
            f"The reconstruction has {len(reconstruction)} channels, expected those of "
            f"{', '.join(reconstructed)}, which are among {', '.join(names)}."
        )
    return dict(zip(reconstructed, reconstruction, strict=True))


def _modalities(item: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names the channels: as told, else by the names of the files."""
    if item.get("modalities"):
        names = ensure_tuple(item["modalities"])
    else:
        files = ensure_tuple(item["image"]) if isinstance(item["image"], str | PathLike | list | tuple) else ()
        kinds = [next((named.kind for named in parse_file(Path(file))), None) for file in files]
        is_named = len(kinds) == count and None not in kinds
        names = (
            tuple(kinds)
            if is_named
            else tuple(f"image {index + 1}" if count > 1 else "image" for index in range(count))
        )
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"The image has {count} channels, but modalities are {', '.join(names)}.")
    return names


def _threshold(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"The threshold must be a finite number, got {value!r}.")
    return float(value)
