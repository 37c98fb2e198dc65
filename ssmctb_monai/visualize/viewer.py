"""What the viewer in the browser is given: a header of plain numbers and texts, and volumes as bytes."""

from __future__ import annotations

import base64
import gzip
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from monai.config import PathLike

from ssmctb_monai.data.oriented_case import grey_window
from ssmctb_monai.files import whole_file
from ssmctb_monai.metrics.lesions import components
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.visualize.candidates import Candidate, find_candidates
from ssmctb_monai.visualize.heatmap import Heatmap, load_heatmap
from ssmctb_monai.visualize.plots import score_limits

logger = logging.getLogger(__name__)

COLORMAPS = ("inferno", "viridis", "cividis")  # perceptually even
MOST_CANDIDATES = 100
LARGEST = np.finfo(np.float16).max
MARGIN = 4  # voxels around the brain
DEFAULT_RATE = 0.01
CALL, END = "heatmapCase(", ");\n"  # around header and volumes in the file of a case
OBLIQUE = 0.2  # a direction's share that its letter is shown from, about 12 degrees


@cache
def asset(name: str) -> str:
    """Reads ``viewer.js`` or another file beside this module."""
    return files("ssmctb_monai.visualize").joinpath(name).read_text(encoding="utf-8")


@cache
def colormaps() -> dict[str, list[int]]:
    """Returns the colours of each map, 256 times red, green and blue from 0 to 255."""
    return {name: matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3].ravel().tolist() for name in COLORMAPS}


class ViewerScan:
    """A heatmap as the viewer shows it: cut to the brain, images and scores with half precision.

    Args:
        heatmap: the scan with its map.

    Raises:
        ValueError: when scores in the brain are infinite.

    Example:
        >>> scan = ViewerScan(load_heatmap(item))  # doctest: +SKIP
        >>> scan.header()["case_id"], len(scan.anomaly_map())  # doctest: +SKIP
    """

    def __init__(self, heatmap: Heatmap) -> None:
        self.heatmap = heatmap
        self.box = heatmap.box((MARGIN,) * 3)
        self._found: dict[float, list[Candidate]] = {}
        self.brain = heatmap.brain[self.box]
        self.scores = heatmap.anomaly_map[self.box]
        if not np.isfinite(self.scores[self.brain]).all():
            raise ValueError("its map holds infinite scores in the brain")
        self.layers = [
            *heatmap.images,
            *(f"{name}, reconstruction" for name in heatmap.reconstructions),
            *(f"{name}, image - reconstruction" for name in heatmap.reconstructions),
        ]

    @cached_property
    def limits(self) -> list[float]:
        """The 0.1 and the 99.9 percentile of the scores in the brain, between which colours run."""
        return [*score_limits([self.scores[self.brain]])]

    @property
    def scale(self) -> list[float]:
        """Middle and width of the limits, at least a thousandth of that of all scores: half precision has an end."""
        low, high = self.limits
        return [(low + high) / 2, max(high - low, float(np.ptp(self.scores[self.brain])) / 1000) or 1.0]

    @property
    def default_threshold(self) -> float:
        """The threshold that came with the map, else the score that one in a hundred voxels of the brain exceeds.

        Where that score is common, it is the next higher one, if there is one.
        """
        if self.heatmap.threshold is not None:
            return self.heatmap.threshold
        scores = self.scores[self.brain]
        threshold = np.quantile(scores, 1 - DEFAULT_RATE)
        higher = scores[scores > threshold]
        is_common = len(higher) > 0 and np.mean(scores >= threshold) > 2 * DEFAULT_RATE  # such as 0 in a sparse map
        return float(higher.min() if is_common else threshold)

    def header(self) -> dict[str, Any]:
        """Makes the header.

        Returns:
            Plain numbers, texts, lists and dictionaries: all that the viewer needs besides the volumes.
        """
        heatmap, offset = self.heatmap, np.array([span.start for span in self.box])
        shift = np.eye(4)
        shift[:3, 3] = offset
        affine = heatmap.affine @ shift
        scores = heatmap.slices["score"]
        return {
            "case_id": heatmap.case_id,
            "shape": list(self.brain.shape),
            "spacing": list(heatmap.spacing),
            "affine": affine.tolist(),
            "from_ras": np.linalg.inv(affine).tolist(),
            "scan_transform": (heatmap.scan_transform @ shift).tolist(),
            "highest_slice": int(heatmap.brain.shape[2] - 1 - offset[2]),
            "directions": [_letters(heatmap.affine[:3, axis]) for axis in range(3)],
            "start": (np.array(heatmap.peak) - offset).tolist(),
            "layers": self.layers,
            "windows": [list(self._window(index)) for index in range(len(self.layers))],
            "scale": self.scale,
            "limits": self.limits,
            "threshold_given": heatmap.threshold is not None,
            "min_size": heatmap.settings.min_lesion_size,
            "slices": {
                "index": heatmap.slices["slice"].tolist(),
                "score": [float(score) if np.isfinite(score) else None for score in scores],
                "lesion": (heatmap.slices["lesion_voxels"] > 0).tolist(),
            },
            **self.candidates(self.default_threshold),
        }

    def _find(self, threshold: float) -> list[Candidate]:
        """Finds the candidates over a threshold, in voxels of the heatmap; remembers those of the last one."""
        if threshold not in self._found:
            heatmap = self.heatmap
            size = heatmap.settings.min_lesion_size
            found = find_candidates(heatmap.anomaly_map, threshold, heatmap.affine, heatmap.brain, size)
            self._found = {threshold: found}
        return self._found[threshold]

    def candidates(self, threshold: float) -> dict[str, Any]:
        """Lists the candidates over a threshold.

        Args:
            threshold: voxels with at least this score are candidates.

        Returns:
            ``threshold``; ``candidates``, the highest hundred, with ``voxel`` in the cut volume and ``scan_voxel`` in
            the scan's own; and their ``total``.
        """
        found = self._find(threshold)
        return {
            "threshold": float(threshold),
            "total": len(found),
            "candidates": [self._entry(item) for item in found[:MOST_CANDIDATES]],
        }

    def _entry(self, candidate: Candidate) -> dict[str, Any]:
        voxel = [place - span.start for place, span in zip(candidate.voxel, self.box, strict=True)]
        return {
            "score": float(candidate.score),
            "volume": float(candidate.volume),
            "voxel": [int(place) for place in voxel],
            "scan_voxel": list(self.heatmap.scan_voxel(candidate.voxel)),
            "position": [float(place) for place in candidate.position],
        }

    def anomaly_map(self) -> bytes:
        """Returns the scores in half precision, x running fastest, NaN outside the brain.

        They are first shifted and scaled by ``scale``, so that neither an offset nor single high scores coarsen them.
        """
        return _halves(np.where(self.brain, self.scores, np.nan), *self.scale)

    def label(self) -> bytes | None:
        """Returns the lesion mask, a byte a voxel; ``None`` where there is none."""
        label = self.heatmap.label
        return None if label is None else self._bytes(label)

    def _bytes(self, mask: np.ndarray) -> bytes:
        return mask[self.box].astype(np.uint8).tobytes(order="F")

    def flagged(self, threshold: float) -> bytes:
        """Returns the mask of all candidates over a threshold, a byte a voxel, where a correction of it begins.

        Args:
            threshold: as of `candidates`.
        """
        heatmap = self.heatmap
        reached = (heatmap.anomaly_map >= threshold) & heatmap.brain
        return self._bytes(components(reached, heatmap.settings.min_lesion_size) > 0)

    def scan_mask(self, content: bytes) -> np.ndarray:
        """Reads a mask that the viewer sends back.

        Args:
            content: a byte a voxel, as of `flagged`.

        Returns:
            The mask in the scan's own array; what is not in the viewer is 0.

        Raises:
            ValueError: when it is of another size, or holds something else than 0 and 1.
        """
        voxels = np.frombuffer(content, np.uint8)
        if voxels.size != self.brain.size or voxels.max(initial=0) > 1:
            raise ValueError(f"a mask of this case has {self.brain.size} voxels of 0 or 1: open the case again")
        mask = np.zeros(self.heatmap.brain.shape, np.uint8)
        mask[self.box] = voxels.reshape(self.brain.shape, order="F")
        return self.heatmap.to_scan(mask)

    def mask(self, mask: np.ndarray) -> bytes:
        """Returns a mask as the viewer takes it, a byte a voxel.

        Args:
            mask: in the scan's own array.
        """
        return self._bytes(self.heatmap.from_scan(mask) > 0)

    def layer(self, index: int) -> bytes:
        """Returns an image in half precision, x running fastest.

        Args:
            index: which of ``layers``: an image or its reconstruction, shifted and scaled so that 0 and 1 are the 0.5
                and the 99.5 percentile of the image in the brain, or their difference, whose zero is 0.5.
        """
        image, reconstruction = self._sources(index)
        if reconstruction is not None:
            image = image - reconstruction if self._is_difference(index) else reconstruction
        return _halves(image, *self._window(index))

    def _sources(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The image that a layer is of, and its reconstruction where the layer shows that."""
        heatmap, reconstructed = self.heatmap, list(self.heatmap.reconstructions)
        images = len(heatmap.images)
        if index < images:
            return list(heatmap.images.values())[index][self.box], None
        name = reconstructed[(index - images) % len(reconstructed)]
        return heatmap.images[name][self.box], heatmap.reconstructions[name][self.box]

    def _window(self, index: int) -> tuple[float, float]:
        """Value of a layer that is drawn black, and how far above it white is."""
        low, span = grey_window(self._sources(index)[0], self.brain)
        return (-span / 2, span) if self._is_difference(index) else (low, span)

    def _is_difference(self, index: int) -> bool:
        return index >= len(self.layers) - len(self.heatmap.reconstructions)


def _halves(values: np.ndarray, shift: float, scale: float) -> bytes:
    """Shifted and scaled values in half precision, x running fastest."""
    scaled = (values.astype(np.float64) - shift) / scale
    return np.clip(scaled, -LARGEST, LARGEST).astype("<f2").tobytes(order="F")


def _letters(direction: np.ndarray) -> list[str]:
    """Names both ends of an axis by the directions that they lie in, the nearest first, such as ``["R", "L"]``."""
    shares = direction / np.linalg.norm(direction)
    axes: Sequence[int] = [axis for axis in np.argsort(-np.abs(shares), kind="stable") if abs(shares[axis]) >= OBLIQUE]
    towards = "".join(("LPI", "RAS")[int(shares[axis] > 0)][axis] for axis in axes)
    return ["".join(dict(zip("LRPAIS", "RLAPSI", strict=True))[letter] for letter in towards), towards]


def write_case(
    item: Mapping[str, Any] | Heatmap,
    folder: PathLike,
    settings: EvaluationSettings | None = None,
    *,
    beside: Mapping[str, Heatmap] | None = None,
) -> bool:
    """Writes a case for the viewer of a page that stands beside the folder.

    A case that cannot be shown is left out with a warning, and a file of an earlier run is removed.

    Args:
        item: a case with a ``case_id``, as `load_heatmap` takes it, or what that returned; of several modalities the
            first is shown.
        folder: where ``CASE.js`` goes: a call of ``heatmapCase`` with the header and the volumes, gzipped, as base64,
            and those of other methods.
        settings: those of the evaluation; a heatmap has its own.
        beside: what other methods find in the same scan, by their names, for the page to show beside.

    Returns:
        Whether it was written.
    """
    name = item.case_id if isinstance(item, Heatmap) else item["case_id"]
    file = Path(folder) / f"{name}.js"
    try:
        if file.parent != Path(folder):
            raise ValueError("its name would be another folder's")
        file.unlink(missing_ok=True)
        scan = ViewerScan(item if isinstance(item, Heatmap) else load_heatmap(item, settings))
        _write_case(scan, {name: ViewerScan(heatmap) for name, heatmap in (beside or {}).items()}, file)
    except (ValueError, OSError) as error:
        logger.warning("%s is not in the viewer: %s", name, error)
        return False
    return True


def read_case(file: PathLike) -> str:
    """Reads what `write_case` wrote, for a page that holds it itself.

    Args:
        file: ``CASE.js``.

    Returns:
        JSON of a list: the header, the volumes, and header and volumes of each other method.
    """
    return f"[{Path(file).read_text(encoding='utf-8').removeprefix(CALL).removesuffix(END)}]"


def _write_case(scan: ViewerScan, beside: Mapping[str, ViewerScan], file: Path) -> None:
    header, volumes = _first_layer(scan), {"map": scan.anomaly_map(), "image": scan.layer(0), "label": scan.label()}
    others = {name: [_first_layer(other), _packed({"map": other.anomaly_map()})] for name, other in beside.items()}
    arguments = [header, _packed(volumes), *([others] if others else [])]
    text = ", ".join(map(json.dumps, arguments)).replace("<", r"\u003c")  # a page may hold it
    with whole_file(file) as unfinished:
        unfinished.write_text(f"{CALL}{text}{END}", encoding="utf-8")


def _first_layer(scan: ViewerScan) -> dict[str, Any]:
    """Header of a scan with its first image alone."""
    header = scan.header()
    return header | {name: header[name][:1] for name in ("layers", "windows")}


def _packed(volumes: Mapping[str, bytes | None]) -> dict[str, str | None]:
    return {
        name: None if volume is None else base64.b64encode(gzip.compress(volume, compresslevel=6, mtime=0)).decode()
        for name, volume in volumes.items()
    }
