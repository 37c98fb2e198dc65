"""The statistic of one case, from which all metrics follow without its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy import ndimage

from ssmctb_monai.data.oriented_case import OrientedCase, grey_window, radiological
from ssmctb_monai.metrics.boxes import BoxFindings, find_boxes
from ssmctb_monai.metrics.lesions import LesionFindings, components, find_lesions
from ssmctb_monai.metrics.score_counts import ScoreCounts
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.view import Plane, View

DRAEM_FILTER = (1, 21, 21)


class CaseTruth:
    """What a case holds, whatever a method says of it: lesions and slices, counted.

    Args:
        case: the case.
        settings: what to count.
    """

    def __init__(self, case: OrientedCase, settings: EvaluationSettings) -> None:
        self.case, self.settings = case, settings

    @cached_property
    def lesion_shares(self) -> tuple[np.ndarray, int]:
        """For each lesion voxel 1 / size of its 3D component, and the number of components."""
        labels = components(self.case.lesion, min_size=1)[self.case.lesion]
        sizes = np.bincount(labels, minlength=1)
        return 1 / sizes[labels], len(sizes) - 1

    @cached_property
    def slice_table(self) -> dict[str, np.ndarray]:
        """Index, height in the brain (0 at its lowest slice, 1 at its highest), brain and lesion voxels of slices."""
        case, rows, depth = self.case, self.case.box[0], len(self.case.brain)
        brain_voxels, lesion_voxels = np.zeros((2, depth), dtype=np.int64)
        brain_voxels[rows] = case.inside.sum(axis=(1, 2))
        lesion_voxels[rows] = case.lesion.sum(axis=(1, 2))
        height = np.full(depth, np.nan)
        height[rows] = np.linspace(0, 1, len(case.inside))
        counts = brain_voxels >= (self.settings.top_k if self.settings.slices == "brain" else 0)
        table = {"slice": np.arange(depth), "relative_height": height}
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
        boxes: what boxes find at each of the case's own thresholds; ``None`` where the settings leave it out.
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
    boxes: BoxFindings | None

    @classmethod
    def of(
        cls,
        method: str,
        truth: CaseTruth,
        threshold: float | None = None,
    ) -> CaseStatistics:
        """Counts a case.

        Args:
            method: name of the method, whose map is finite or infinite; outside the brain it is not looked at.
            truth: what the case holds.
            threshold: voxels with at least this score are flagged.

        Returns:
            The statistic.

        Raises:
            ValueError: when a score in the brain is NaN, or the score of a slice is not defined.
        """
        case = truth.case
        inside, lesion = case.inside, case.lesion
        anomaly_map = case.cut(case.anomaly_maps[method])
        free = None if case.lesion_free is None else case.cut(case.lesion_free) & inside & ~lesion
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
        levels = truth.settings.box_levels
        return cls(
            case_id=case.case_id,
            patient_id=case.patient_id,
            normal=normal,
            lesion=of_lesion,
            lesion_components=count,
            lesion_free=None if free is None else ScoreCounts.of(anomaly_map[free]),
            slices=slices,
            voxel_volume=case.voxel_volume,
            slice_thickness=case.spacing[2],
            has_brain=case.has_brain,
            flagged=flagged,
            boxes=find_boxes(anomaly_map, inside, lesion, levels) if levels else None,
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
        anomaly_map: scores, cut to the brain; outside it they are not looked at.
        truth: what the case holds.

    Returns:
        Scores of the slices of ``truth.slice_table``; -inf where a slice holds no brain.

    Raises:
        ValueError: when a score is not defined.
    """
    settings, inside = truth.settings, truth.case.inside
    if settings.slice_score == "filtered_max":
        lowest = anomaly_map[inside].min()
        filled = np.where(inside, anomaly_map, lowest).astype(np.result_type(anomaly_map, np.float32))
        anomaly_map = ndimage.uniform_filter(filled, DRAEM_FILTER, mode="constant", cval=float(lowest))
    counted, in_brain = np.where(inside, anomaly_map, -np.inf).reshape(len(inside), -1), inside.reshape(len(inside), -1)
    if settings.slice_score != "mean":
        top_k = min(settings.top_k if settings.slice_score == "top_k_mean" else 1, counted.shape[1])
        in_brain = np.arange(top_k) < in_brain.sum(axis=1, keepdims=True)
        counted = torch.topk(torch.from_numpy(counted), top_k).values.numpy()  # NumPy's takes twice as long
    count = in_brain.sum(axis=1)
    with np.errstate(invalid="ignore"):
        means = np.where(in_brain, counted.astype(np.float64), 0).sum(axis=1) / np.maximum(count, 1)
    if np.isnan(means).any():
        raise ValueError("infinite scores have no mean: score slices by their max, or give finite scores")
    scores = np.full(len(truth.case.brain), -np.inf)
    scores[truth.case.box[0]] = np.where(count > 0, means, -np.inf)
    return scores[truth.slice_table["slice"]]


def views_of(case: OrientedCase, statistics: CaseStatistics, method: str) -> list[View]:
    """Keeps the slices of a case that are worth a look.

    Args:
        case: the case; its first image is shown.
        statistics: the method's statistic of the case.
        method: name of the method.

    Returns:
        The slice with the most lesion voxels, and the lesion-free one with the highest score, where they exist.
    """
    slices = statistics.slices
    in_brain, has_lesion = slices["brain_voxels"] > 0, slices["lesion_voxels"] > 0
    kinds: dict[Literal["lesion", "false_alarm"], np.ndarray] = {
        "lesion": np.where(has_lesion, slices["lesion_voxels"], -np.inf),
        "false_alarm": np.where(in_brain & ~has_lesion, slices["score"], -np.inf),
    }
    image = next((case.cut(image) for image in case.images.values()), None)
    if image is not None:
        image = np.nan_to_num(image.astype(np.float32))
        low, width = grey_window(image, case.inside)
    anomaly_map = case.cut(case.anomaly_maps[method])
    views = []
    for kind, rank in kinds.items():
        if not np.isfinite(rank).any():
            continue
        best = int(np.argmax(rank))
        place = slices["slice"][best] - case.box[0].start
        plane = Plane(
            None if image is None else np.clip((radiological(image[place]) - low) / width, 0, 1).astype(np.float16),
            radiological(anomaly_map[place]).copy(),
            radiological(case.inside[place]).copy(),
            radiological(case.lesion[place]).copy(),
            aspect=case.spacing[1] / case.spacing[0],
        )
        views.append(View(case.case_id, method, kind, int(slices["slice"][best]), float(slices["score"][best]), plane))
    return views
