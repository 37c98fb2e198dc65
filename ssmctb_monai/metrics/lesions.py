"""Which lesions a thresholded anomaly map finds, and what it flags besides.

A flagged component stands or falls as a whole, so it has one score, its highest; a curve over the scores then tells
what a reader who looks at the components in that order finds and what he is misled by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ssmctb_monai.data.oriented_case import bounding_box

MIN_OVERLAP = 0.1
TOUCHING = np.ones((3, 3, 3), dtype=bool)  # 26 neighbours
TOUCHING_IN_SLICE = np.zeros((3, 3, 3), dtype=bool)
TOUCHING_IN_SLICE[1] = True  # 8 neighbours in the same slice


@dataclass(frozen=True)
class Detections:
    """What was found, with the scores at which it was.

    Attributes:
        targets: number of things to find.
        found: score of each that was found: the highest threshold at which it is.
        false_alarms: score of each component that was flagged in error.
    """

    targets: int
    found: np.ndarray
    false_alarms: np.ndarray


@dataclass(frozen=True)
class LesionFindings:
    """Detections in one case, by lesion (3D component), region (2D component) and track.

    Attributes:
        lesions: a flagged component is right when at least a tenth of it is lesion; a lesion is found when right
            components cover at least a tenth of it.
        regions: region-based detection criterion (RBDC): a lesion's region in a slice is found by a flagged region with
            an intersection over union of at least 0.1, and a flagged region without such a partner is a false alarm.
        tracks: track-based detection criterion (TBDC): a lesion is found when at least a tenth of its regions are; the
            false alarms are those of the regions.
    """

    lesions: Detections
    regions: Detections
    tracks: Detections


def components(mask: np.ndarray, min_size: int, structure: np.ndarray = TOUCHING) -> np.ndarray:
    """Numbers the connected components of a mask.

    Args:
        mask: boolean array of shape (slices, height, width).
        min_size: number of voxels that a component must have; smaller ones are left out.
        structure: which neighbours are connected.

    Returns:
        Array of the mask's shape: 0 outside, and the component's number from 1 on.
    """
    labels = np.zeros(mask.shape, dtype=np.int32)
    box = bounding_box(mask)
    inside = mask[box]
    numbers, count = ndimage.label(inside, structure)
    kept = np.bincount(numbers[inside], minlength=count + 1) >= min_size
    labels[box][inside] = np.where(kept, kept.cumsum(), 0)[numbers[inside]]
    return labels


def find_lesions(
    anomaly_map: np.ndarray, inside: np.ndarray, lesion: np.ndarray, threshold: float, min_size: int
) -> LesionFindings:
    """Compares flagged components with lesions.

    Ramachandra and Jones, *Street Scene: A new dataset and evaluation protocol for video anomaly detection*, WACV 2020,
    https://arxiv.org/abs/1902.05872, for regions and tracks; a slice is their frame, a volume their video.

    Args:
        anomaly_map: scores, shape (slices, height, width).
        inside: mask of the voxels that count.
        lesion: lesion mask.
        threshold: voxels with at least this score are flagged.
        min_size: number of voxels of the smallest component that counts. Smaller lesions need not be found, and
            flagging them is no false alarm; smaller flagged components are dropped.

    Returns:
        The findings.
    """
    flagged = components(inside & (anomaly_map >= threshold), min_size)
    targets = components(lesion, min_size)
    ignored = lesion & (targets == 0)
    flagged_regions, target_regions = (components(mask > 0, 1, TOUCHING_IN_SLICE) for mask in (flagged, targets))
    counted = (flagged > 0) | lesion  # all that is looked at from here on, a small part of the voxels
    anomaly_map, lesion, ignored = anomaly_map[counted], lesion[counted], ignored[counted]
    flagged, targets = flagged[counted], targets[counted]
    flagged_regions, target_regions = flagged_regions[counted], target_regions[counted]
    regions, region_scores = _find_regions(anomaly_map, flagged_regions, target_regions, ignored)
    return LesionFindings(
        lesions=_find_components(anomaly_map, flagged, targets, lesion),
        regions=regions,
        tracks=_find_tracks(targets, target_regions, region_scores, regions.false_alarms),
    )


def _find_components(
    anomaly_map: np.ndarray, flagged: np.ndarray, targets: np.ndarray, lesion: np.ndarray
) -> Detections:
    scores, sizes = _highest(anomaly_map, flagged), np.bincount(flagged, minlength=1)
    is_right = np.bincount(flagged[lesion], minlength=len(sizes)) >= MIN_OVERLAP * sizes
    target_sizes = np.bincount(targets, minlength=1)
    pairs, shared = _overlaps(flagged, targets)
    covered = np.zeros(len(target_sizes))
    found: dict[int, float] = {}
    for index in np.argsort(-scores[pairs[:, 0]], kind="stable"):
        component, target = pairs[index]
        if is_right[component]:
            covered[target] += shared[index]
            if covered[target] >= MIN_OVERLAP * target_sizes[target]:
                found.setdefault(target, scores[component])
    return Detections(len(target_sizes) - 1, np.array(list(found.values())), scores[1:][~is_right[1:]])


def _find_regions(
    anomaly_map: np.ndarray, flagged: np.ndarray, targets: np.ndarray, ignored: np.ndarray
) -> tuple[Detections, np.ndarray]:
    """Returns the detections, and the score of every target region: -inf where it is not found."""
    scores = _highest(anomaly_map, flagged)
    sizes, target_sizes = np.bincount(flagged, minlength=1), np.bincount(targets, minlength=1)
    pairs, shared = _overlaps(flagged, targets)
    union = sizes[pairs[:, 0]] + target_sizes[pairs[:, 1]] - shared
    matches = pairs[shared >= MIN_OVERLAP * union]
    found = np.full(len(target_sizes), -np.inf)
    np.maximum.at(found, matches[:, 1], scores[matches[:, 0]])
    is_false = np.ones(len(sizes), dtype=bool)
    is_false[[0, *matches[:, 0], *np.unique(flagged[ignored])]] = False
    return Detections(len(found) - 1, found[found > -np.inf], scores[is_false]), found


def _find_tracks(
    targets: np.ndarray, target_regions: np.ndarray, region_scores: np.ndarray, false_alarms: np.ndarray
) -> Detections:
    pairs, _ = _overlaps(targets, target_regions)
    found = []
    for target in range(1, targets.max(initial=0) + 1):
        scores = np.sort(region_scores[pairs[pairs[:, 0] == target, 1]])[::-1]
        found.append(scores[int(np.ceil(MIN_OVERLAP * len(scores))) - 1])
    reached = np.array(found)
    return Detections(len(reached), reached[reached > -np.inf], false_alarms)


def _overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the pairs of components that share voxels, shape (pairs, 2), and the number of voxels of each."""
    both = (first > 0) & (second > 0)
    count = second.max(initial=0) + 1
    codes, shared = np.unique(first[both].astype(np.int64) * count + second[both], return_counts=True)
    return np.stack([codes // count, codes % count], axis=1), shared


def _highest(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Finds the highest score of each component, after one of -inf for what is in none."""
    highest = np.full(labels.max(initial=0) + 1, -np.inf)
    chosen = labels > 0
    np.maximum.at(highest, labels[chosen], scores[chosen])
    return highest
