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
    """A heatmap as the viewer shows it: cut to the brain, images with 256 grey values, scores with half precision.

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
        """Middle and width of the limits; where they are equal, the width of all scores in the brain."""
        low, high = self.limits
        return [(low + high) / 2, high - low or float(np.ptp(self.scores[self.brain])) or 1.0]

    @property
    def default_threshold(self) -> float:
        """The threshold that came with the map, else the score that one in a hundred voxels of the brain exceeds."""
        if self.heatmap.threshold is not None:
            return self.heatmap.threshold
        return float(np.quantile(self.scores[self.brain], 1 - DEFAULT_RATE))

    def header(self) -> dict[str, Any]:
        """Makes the header.

        Returns:
            Plain numbers, texts, lists and dictionaries: all that the viewer needs besides the volumes.
        """
        heatmap, offset = self.heatmap, np.array([span.start for span in self.box])
        shift = np.eye(4)
        shift[:3, 3] = offset
        scores = heatmap.slices["score"]
        return {
            "case_id": heatmap.case_id,
            "shape": list(self.brain.shape),
            "spacing": list(heatmap.spacing),
            "affine": (heatmap.affine @ shift).tolist(),
            "scan_transform": (heatmap.scan_transform @ shift).tolist(),
            "highest_slice": int(heatmap.brain.shape[2] - 1 - offset[2]),
            "directions": [_letters(heatmap.affine[:3, axis]) for axis in range(3)],
            "start": (np.array(heatmap.peak) - offset).tolist(),
            "layers": self.layers,
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
        middle, span = self.scale
        scaled = np.clip((self.scores.astype(np.float64) - middle) / span, -LARGEST, LARGEST)
        return np.where(self.brain, scaled, np.nan).astype("<f2").tobytes(order="F")

    def label(self) -> bytes | None:
        """Returns the lesion mask, a byte a voxel; ``None`` where there is none."""
        label = self.heatmap.label
        return None if label is None else label[self.box].astype(np.uint8).tobytes(order="F")

    def layer(self, index: int) -> bytes:
        """Returns an image as grey values.

        Args:
            index: which of ``layers``: an image or its reconstruction, on the image's scale from the 0.5 to the 99.5
                percentile in the brain, or their difference, whose zero is the middle grey.

        Returns:
            A byte a voxel, x running fastest.
        """
        heatmap, reconstructed = self.heatmap, list(self.heatmap.reconstructions)
        images, count = len(heatmap.images), len(reconstructed)
        name = list(heatmap.images)[index] if index < images else reconstructed[(index - images) % count]
        image = heatmap.images[name][self.box]
        low, span = grey_window(image, self.brain)
        if index >= images:
            reconstruction = heatmap.reconstructions[name][self.box]
            if index < images + count:
                image = reconstruction
            else:
                image, low = image - reconstruction, -span / 2
        scaled = np.clip((image - low) / span, 0, 1)
        return np.rint(255 * scaled).astype(np.uint8).tobytes(order="F")


def _letters(direction: np.ndarray) -> list[str]:
    """Names both ends of an axis by the directions that they lie in, the nearest first, such as ``["R", "L"]``."""
    shares = direction / np.linalg.norm(direction)
    axes: Sequence[int] = [axis for axis in np.argsort(-np.abs(shares), kind="stable") if abs(shares[axis]) >= OBLIQUE]
    towards = "".join(("LPI", "RAS")[int(shares[axis] > 0)][axis] for axis in axes)
    return ["".join(dict(zip("LRPAIS", "RLAPSI", strict=True))[letter] for letter in towards), towards]


def write_case(item: Mapping[str, Any] | Heatmap, folder: PathLike, settings: EvaluationSettings | None = None) -> bool:
    """Writes a case for the viewer of a page that stands beside the folder.

    A case that cannot be shown is left out with a warning, and a file of an earlier run is removed.

    Args:
        item: a case with a ``case_id``, as `load_heatmap` takes it, or what that returned; of several modalities the
            first is shown.
        folder: where ``CASE.js`` goes: a call of ``heatmapCase`` with the header and the volumes, gzipped, as base64.
        settings: those of the evaluation; a heatmap has its own.

    Returns:
        Whether it was written.
    """
    name = item.case_id if isinstance(item, Heatmap) else item["case_id"]
    file = Path(folder) / f"{name}.js"
    try:
        if file.parent != Path(folder):
            raise ValueError("its name would be another folder's")
        file.unlink(missing_ok=True)
        _write_case(ViewerScan(item if isinstance(item, Heatmap) else load_heatmap(item, settings)), file)
    except (ValueError, OSError) as error:
        logger.warning("%s is not in the viewer: %s", name, error)
        return False
    return True


def _write_case(scan: ViewerScan, file: Path) -> None:
    header = scan.header()
    header["layers"] = header["layers"][:1]
    volumes = {"map": scan.anomaly_map(), "image": scan.layer(0), "label": scan.label()}
    packed = {
        name: volume and base64.b64encode(gzip.compress(volume, compresslevel=6, mtime=0)).decode()
        for name, volume in volumes.items()
    }
    with whole_file(file) as unfinished:
        unfinished.write_text(f"heatmapCase({json.dumps(header)}, {json.dumps(packed)});\n", encoding="utf-8")
