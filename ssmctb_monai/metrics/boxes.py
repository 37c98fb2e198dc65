"""The regional criterion of the video literature: boxes around what a map flags, at one threshold after another.

Ramachandra and Jones, *Street Scene: A new dataset and evaluation protocol for video anomaly detection*, WACV 2020,
https://arxiv.org/abs/1902.05872. A slice is their frame, a volume their video. Boxes are rows of frame, first row,
first column, last row and last column, the last ones included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from ssmctb_monai.metrics.lesions import MIN_OVERLAP, TOUCHING_IN_SLICE, components
from ssmctb_monai.metrics.ranking import area_up_to, ratio
from ssmctb_monai.metrics.score_counts import ScoreCounts
from ssmctb_monai.metrics.score_table import CHUNK

HIGHEST = 1e-5  # share of a case's voxels that its highest threshold flags


@dataclass(frozen=True)
class BoxFindings:
    """What boxes find in one case at each of its thresholds, and how many of them find nothing.

    Attributes:
        thresholds: descending; above the first there are no boxes, and between two as many as at the higher one.
        regions: number of regions found at each.
        tracks: number of tracks found at each.
        false_alarms: number of boxes at each that find no region.
        targets: number of all regions and of all tracks.
    """

    thresholds: np.ndarray
    regions: np.ndarray
    tracks: np.ndarray
    false_alarms: np.ndarray
    targets: dict[str, int]

    @classmethod
    def of(cls, levels: Iterable[tuple[float, np.ndarray]], regions: np.ndarray, tracks: np.ndarray) -> BoxFindings:
        """Counts what boxes find.

        A region is found by a box in its frame with an intersection over union of at least 0.1; one box may find
        several. A track is found when at least a tenth of its regions are.

        Args:
            levels: descending thresholds, each with the boxes that it leaves, shape (boxes, 5).
            regions: boxes of the regions to find, shape (regions, 5).
            tracks: number of the track of each region, shape (regions,).

        Returns:
            The findings.

        Example:
            >>> levels = [(0.9, np.array([[0, 2, 2, 5, 5]])), (0.4, np.array([[0, 2, 2, 5, 5], [1, 0, 0, 3, 3]]))]
            >>> BoxFindings.of(levels, np.array([[0, 2, 2, 5, 7]]), np.array([1])).false_alarms
            array([0, 1])
        """
        order = np.argsort(regions[:, 0], kind="stable")
        regions, (names, tracks) = regions[order], np.unique(tracks[order], return_inverse=True)
        lengths = np.bincount(tracks, minlength=len(names))
        thresholds, counts = [], []
        for threshold, boxes in levels:
            partners = _partners(boxes, regions)
            is_found, is_right = np.zeros(len(regions), dtype=bool), np.zeros(len(boxes), dtype=bool)
            is_right[partners[0]] = is_found[partners[1]] = True
            is_found_track = np.bincount(tracks[is_found], minlength=len(names)) >= MIN_OVERLAP * lengths
            thresholds.append(threshold)
            counts.append((is_found.sum(), is_found_track.sum(), (~is_right).sum()))
        found, found_tracks, false_alarms = np.array(counts, dtype=int).reshape(-1, 3).T
        targets = {"regions": len(regions), "tracks": len(names)}
        return cls(np.array(thresholds, dtype=float), found, found_tracks, false_alarms, targets)

    def at(self, thresholds: np.ndarray, kind: Literal["regions", "tracks", "false_alarms"]) -> np.ndarray:
        """Looks up one of the counts.

        Args:
            thresholds: any thresholds.
            kind: what is counted.

        Returns:
            The count at each threshold.
        """
        passed = np.searchsorted(-self.thresholds, -thresholds, side="right")
        return np.concatenate([[0], getattr(self, kind)])[passed]


def find_boxes(anomaly_map: np.ndarray, inside: np.ndarray, lesion: np.ndarray, levels: int) -> BoxFindings:
    """Compares the boxes of flagged components, at a case's own thresholds, with those of its lesions.

    The regions of a slice are the 2D components of the lesions in it, the tracks are the lesions (3D components); of
    either the smallest counts as well. Thresholds flag at most shares of the voxels in geometric steps, from a hundred
    thousandth to all, and at least what scores highest.

    Args:
        anomaly_map: scores, shape (slices, height, width).
        inside: mask of the voxels that count.
        lesion: lesion mask.
        levels: number of thresholds.

    Returns:
        The findings.
    """
    lesions = components(lesion, 1)
    numbers, count = ndimage.label(lesion, TOUCHING_IN_SLICE)
    tracks = ndimage.maximum(lesions, numbers, np.arange(1, count + 1)) if count else np.zeros(0, dtype=int)
    counts, shares = ScoreCounts.of(anomaly_map[inside]), np.geomspace(HIGHEST, 1, levels)
    thresholds = np.unique(np.minimum([counts.threshold(share) for share in shares], counts.values[-1]))[::-1]
    scores = np.where(inside, anomaly_map, -np.inf)

    def flagged() -> Iterator[tuple[float, np.ndarray]]:
        for threshold in thresholds:
            mask = (scores >= threshold) & inside
            yield threshold, _boxes(ndimage.label(mask, TOUCHING_IN_SLICE)[0])

    return BoxFindings.of(flagged(), _boxes(numbers), np.asarray(tracks))


def box_criterion(
    cases: Sequence[BoxFindings], frames: np.ndarray, kind: Literal["regions", "tracks"], weights: np.ndarray
) -> np.ndarray:
    """Computes the area under the curve of found regions or tracks over false alarms per frame, from 0 to 1.

    Thresholds fall along the curve. Where boxes merge, so that a lower threshold has fewer false alarms than a higher
    one, the curve rises or falls in place. Beyond the last point it stays level.

    Args:
        cases: findings of each case.
        frames: number of frames of each case.
        kind: what is to be found.
        weights: how often each case counts, shape (sets, cases).

    Returns:
        Areas, shape (sets,); NaN where there is nothing to find.
    """
    thresholds = np.unique(np.concatenate([case.thresholds for case in cases]))[::-1]
    false_alarms, found = (np.array([case.at(thresholds, name) for case in cases]) for name in ("false_alarms", kind))
    targets = np.array([case.targets[kind] for case in cases])
    step = max(1, CHUNK // (1 + len(thresholds)))
    areas = []
    for part in np.split(weights, range(step, len(weights), step)):
        x = ratio(part @ false_alarms, (part @ frames)[:, None])
        y = ratio(part @ found, (part @ targets)[:, None])
        x, y = (np.concatenate([np.zeros((len(part), 1)), values], axis=1) for values in (x, y))
        areas.append(area_up_to(np.maximum.accumulate(x, axis=1), y, limit=1))
    return np.concatenate(areas)


def _boxes(labels: np.ndarray) -> np.ndarray:
    """Finds the boxes of the components of slices, shape (components, 5)."""
    found = ndimage.find_objects(labels)
    corners = [(z.start, y.start, x.start, y.stop - 1, x.stop - 1) for z, y, x in found]
    return np.array(corners, dtype=int).reshape(-1, 5)


def _partners(boxes: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the pairs of a box and a region, in the order of their frames, that overlap enough."""
    first, last = (np.searchsorted(regions[:, 0], boxes[:, 0], side=side) for side in ("left", "right"))
    count = last - first
    box = np.repeat(np.arange(len(boxes)), count)
    region = np.arange(len(box)) + np.repeat(first - count.cumsum() + count, count)
    one, other = boxes[box, 1:], regions[region, 1:]
    shared = np.concatenate([np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])], axis=1)
    areas = [(corners[:, 2:] - corners[:, :2] + 1).clip(min=0).prod(axis=1) for corners in (one, other, shared)]
    is_partner = areas[2] >= MIN_OVERLAP * (areas[0] + areas[1] - areas[2])
    return box[is_partner], region[is_partner]
