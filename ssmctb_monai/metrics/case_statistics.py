"""The statistic of one case, from which all metrics follow without its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ssmctb_monai.data.checks import has_whole_labels
from ssmctb_monai.metrics.lesions import LesionFindings, bounding_box, components, find_lesions
from ssmctb_monai.metrics.score_counts import ScoreCounts
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.view import View

DRAEM_FILTER = (1, 21, 21)


class CaseTruth:
    """What a case holds, whatever a method says of it: brain, lesions and slices.

    All arrays are turned to (slices from the feet up, …) and cut to the brain, so that what follows is quick.

    Args:
        case_id: name of the case.
        patient_id: name of the patient.
        label: lesion mask of shape (height, width, depth); every voxel that is not 0 is lesion.
        brain: brain mask of the same shape; voxels of a lesion count in any case. ``None`` counts every voxel.
        affine: 4 x 4 matrix from voxels to RAS coordinates in mm; without it the last axis runs from the feet up, and
            voxels measure 1 mm³.
        settings: what to count.

    Raises:
        ValueError: when the brain is empty, or a label is negative or no whole number.
    """

    def __init__(
        self,
        case_id: str,
        patient_id: str,
        label: np.ndarray,
        brain: np.ndarray | None,
        affine: np.ndarray | None,
        settings: EvaluationSettings,
    ) -> None:
        self.case_id, self.patient_id, self.settings = case_id, patient_id, settings
        self.orientation = nib.io_orientation(np.eye(4) if affine is None else affine)
        sizes = np.ones(3) if affine is None else voxel_sizes(affine)
        self.slice_thickness = float(sizes[np.argmax(self.orientation[:, 0] == 2)])  # mm
        self.voxel_volume = 1e-3 * (1.0 if affine is None else float(abs(np.linalg.det(affine[:3, :3]))))  # ml
        self.has_brain = brain is not None
        if not has_whole_labels(label):
            raise ValueError("the label holds values that are negative or not whole numbers")
        lesion = self._turned(label) > 0.5  # labels are whole up to rounding
        inside = np.ones_like(lesion) if brain is None else (self._turned(brain) > 0) | lesion
        if not inside.any():
            raise ValueError("the brain is empty")
        self.depth = len(inside)
        self.box = bounding_box(inside)
        self.inside, self.lesion = inside[self.box].copy(), lesion[self.box].copy()

    def _turned(self, array: np.ndarray) -> np.ndarray:
        return nib.apply_orientation(array, self.orientation).transpose(2, 0, 1)

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Turns an array of the scan's shape to slices from the feet up, and cuts it to the brain."""
        return np.ascontiguousarray(self._turned(array)[self.box])

    @cached_property
    def lesion_shares(self) -> tuple[np.ndarray, int]:
        """For each lesion voxel 1 / size of its 3D component, and the number of components."""
        labels = components(self.lesion, min_size=1)[self.lesion]
        sizes = np.bincount(labels, minlength=1)
        return 1 / sizes[labels], len(sizes) - 1

    @cached_property
    def slice_table(self) -> dict[str, np.ndarray]:
        """Index, height in the brain (0 at its lowest slice, 1 at its highest), brain and lesion voxels of slices."""
        brain_voxels, lesion_voxels = np.zeros((2, self.depth), dtype=np.int64)
        brain_voxels[self.box[0]] = self.inside.sum(axis=(1, 2))
        lesion_voxels[self.box[0]] = self.lesion.sum(axis=(1, 2))
        height = np.full(self.depth, np.nan)
        height[self.box[0]] = np.linspace(0, 1, len(self.inside))
        counts = brain_voxels >= (self.settings.top_k if self.settings.slices == "brain" else 0)
        table = {"slice": np.arange(self.depth), "relative_height": height}
        table |= {"brain_voxels": brain_voxels, "lesion_voxels": lesion_voxels}
        return {name: column[counts] for name, column in table.items()}


@dataclass(frozen=True)
class Flagged:
    """What a threshold flags in one case.

    Attributes:
        threshold: voxels and slices with at least this score are flagged.
        normal: number of flagged lesion-free voxels.
        lesion: number of flagged lesion voxels.
        normal_slices: number of flagged slices without a lesion.
        findings: lesions that flagged components find.
    """

    threshold: float
    normal: int
    lesion: int
    normal_slices: int
    findings: LesionFindings


@dataclass(frozen=True)
class CaseStatistics:
    """What one method's anomaly map says of one case, counted.

    Counts of several cases add up, so pooled metrics and their intervals need neither the voxels nor a memory that
    grows with them.

    Attributes:
        case_id: name of the case.
        patient_id: name of the patient.
        normal: scores of the lesion-free voxels.
        lesion: scores of the lesion voxels, with 1 / size of their component as weight.
        lesion_components: number of 3D components of the lesion.
        lesion_free: scores in regions without lesions that thresholds may be taken from.
        slices: a column each of index, relative height, voxels of brain and lesion, and score of the slices.
        voxel_volume: volume of a voxel in ml.
        slice_thickness: distance of two slices in mm.
        has_brain: whether there was a brain mask; without one every voxel counts.
        flagged: what the threshold flags; ``None`` where no threshold was given.
    """

    case_id: str
    patient_id: str
    normal: ScoreCounts
    lesion: ScoreCounts
    lesion_components: int
    lesion_free: ScoreCounts | None
    slices: dict[str, np.ndarray]
    voxel_volume: float
    slice_thickness: float
    has_brain: bool
    flagged: Flagged | None

    @classmethod
    def of(
        cls,
        anomaly_map: np.ndarray,
        truth: CaseTruth,
        threshold: float | None = None,
        lesion_free: np.ndarray | None = None,
    ) -> CaseStatistics:
        """Counts a case.

        Args:
            anomaly_map: scores, cut by ``truth``; outside the brain they are not looked at.
            truth: what the case holds.
            threshold: voxels with at least this score are flagged.
            lesion_free: mask of regions that thresholds may be taken from, cut by ``truth``.

        Returns:
            The statistic.

        Raises:
            ValueError: when a score in the brain is NaN, or the score of a slice is not defined.
        """
        inside, lesion = truth.inside, truth.lesion
        normal_scores, lesion_scores = anomaly_map[inside & ~lesion], anomaly_map[lesion]
        shares, count = truth.lesion_shares
        normal, of_lesion = ScoreCounts.of(normal_scores), ScoreCounts.of(lesion_scores, shares)
        slices = {**truth.slice_table, "score": slice_scores(anomaly_map, truth)}
        flagged = None
        if threshold is not None:
            flagged = Flagged(
                threshold,
                normal=int((normal_scores >= threshold).sum()),
                lesion=int((lesion_scores >= threshold).sum()),
                normal_slices=int((slices["score"][slices["lesion_voxels"] == 0] >= threshold).sum()),
                findings=find_lesions(anomaly_map, inside, lesion, threshold, truth.settings.min_lesion_size),
            )
        return cls(
            case_id=truth.case_id,
            patient_id=truth.patient_id,
            normal=normal,
            lesion=of_lesion,
            lesion_components=count,
            lesion_free=None if lesion_free is None else ScoreCounts.of(anomaly_map[lesion_free & inside & ~lesion]),
            slices=slices,
            voxel_volume=truth.voxel_volume,
            slice_thickness=truth.slice_thickness,
            has_brain=truth.has_brain,
            flagged=flagged,
        )

    @property
    def brain_volume(self) -> float:
        """Volume of all voxels that count, in ml."""
        return (self.normal.total + self.lesion.total) * self.voxel_volume

    @property
    def lesion_volume(self) -> float:
        """Volume of the lesion in ml."""
        return self.lesion.total * self.voxel_volume

    @property
    def volume_score(self) -> float:
        """Score of the volume: that of its highest slice."""
        return float(self.slices["score"].max(initial=-np.inf))


def slice_scores(anomaly_map: np.ndarray, truth: CaseTruth) -> np.ndarray:
    """Scores the slices.

    Args:
        anomaly_map: scores, cut by ``truth``; outside the brain they are not looked at.
        truth: what the case holds.

    Returns:
        Scores of the slices of ``truth.slice_table``; -inf where a slice holds no brain.

    Raises:
        ValueError: when a score is not defined.
    """
    settings, inside = truth.settings, truth.inside
    if settings.slice_score == "filtered_max":
        lowest = anomaly_map[inside].min()
        filled = np.where(inside, anomaly_map, lowest).astype(np.result_type(anomaly_map, np.float32))
        anomaly_map = ndimage.uniform_filter(filled, DRAEM_FILTER, mode="constant", cval=float(lowest))
    ranked = np.where(inside, anomaly_map, -np.inf).reshape(len(inside), -1)
    top_k = min(settings.top_k if settings.slice_score == "top_k_mean" else 1, ranked.shape[1])
    highest = np.sort(np.partition(ranked, -top_k, axis=1)[:, -top_k:], axis=1)[:, ::-1].astype(np.float64)
    count = np.minimum(inside.sum(axis=(1, 2)), top_k)
    in_brain = np.arange(top_k) < count[:, None]
    with np.errstate(invalid="ignore"):
        means = np.where(in_brain, highest, 0).sum(axis=1) / np.maximum(count, 1)
    if np.isnan(means).any():
        raise ValueError("infinite scores have no mean: score slices by their max, or give finite scores")
    scores = np.full(truth.depth, -np.inf)
    scores[truth.box[0]] = np.where(count > 0, means, -np.inf)
    return scores[truth.slice_table["slice"]]


def views_of(
    anomaly_map: np.ndarray, truth: CaseTruth, image: np.ndarray | None, statistics: CaseStatistics, method: str
) -> list[View]:
    """Keeps the slices of a case that are worth a look.

    Args:
        anomaly_map: scores, cut by ``truth``.
        truth: what the case holds.
        image: image to show, cut by ``truth``.
        statistics: the method's statistic of the case.
        method: name of the method.

    Returns:
        The slice with the most lesion voxels, and the lesion-free one with the highest score, where they exist.
    """
    slices, first = statistics.slices, truth.box[0].start
    in_brain, has_lesion = slices["brain_voxels"] > 0, slices["lesion_voxels"] > 0
    kinds: dict[Literal["lesion", "false_alarm"], np.ndarray] = {
        "lesion": np.where(has_lesion, slices["lesion_voxels"], -np.inf),
        "false_alarm": np.where(in_brain & ~has_lesion, slices["score"], -np.inf),
    }
    if image is not None:
        image = np.nan_to_num(image.astype(np.float32))
        low, high = np.percentile(image[truth.inside], (0.5, 99.5))
    views = []
    for kind, rank in kinds.items():
        if not np.isfinite(rank).any():
            continue
        best = int(np.argmax(rank))
        place = slices["slice"][best] - first
        views.append(
            View(
                truth.case_id,
                method,
                kind,
                int(slices["slice"][best]),
                float(slices["score"][best]),
                None if image is None else np.clip((image[place] - low) / (high - low or 1), 0, 1).astype(np.float16),
                anomaly_map[place].copy(),
                truth.lesion[place].copy(),
                truth.inside[place].copy(),
            )
        )
    return views
