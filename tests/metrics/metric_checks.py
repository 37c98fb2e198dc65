"""What several test files of the metrics share: small cases, and plain metrics of their voxels, without counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from monai.metrics import compute_froc_score
from scipy import ndimage
from scipy.integrate import trapezoid
from skimage.measure import label as components
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import distributed, multiprocessing

from ssmctb_monai.metrics import AnomalyEvaluation, EvaluationSettings
from ssmctb_monai.metrics.score_counts import ScoreCounts

TOP_K, SLAB_DEPTH, MIN_SIZE, THRESHOLD = 3, 3, 3, 0.5
BOX_LEVELS = 12
SMALL = EvaluationSettings(
    top_k=TOP_K, slab_depth=SLAB_DEPTH, min_lesion_size=MIN_SIZE, box_levels=BOX_LEVELS, resamples=200
)
NAN = float("nan")


# ----------------------------------------------------------------------------------------------------------- score sets


def ranks(scores: np.ndarray) -> np.ndarray:
    return np.unique(scores, return_inverse=True)[1]


def auroc_of(scores: np.ndarray, labels: np.ndarray) -> float:
    """scikit-learn's, which accepts neither infinite scores nor a single class."""
    return roc_auc_score(labels, ranks(scores)) if 0 < labels.sum() < len(labels) else NAN


def average_precision_of(scores: np.ndarray, labels: np.ndarray) -> float:
    return average_precision_score(labels, ranks(scores)) if labels.any() else NAN


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "normal": lambda rng, shift: rng.normal(shift),
    "uniform": lambda rng, shift: rng.random(len(shift)) + shift / 4,
    "lognormal": lambda rng, shift: rng.lognormal(shift, 2),
    "heavy tails": lambda rng, shift: rng.standard_cauchy(len(shift)) + shift,
    "few levels": lambda rng, shift: np.floor(rng.normal(shift) * 2),
    "half at one value": lambda rng, shift: np.maximum(rng.normal(shift), 0),
    "one value": lambda rng, shift: np.zeros(len(shift)),
    "confident network": lambda rng, shift: 1 / (1 + np.exp(-np.clip(rng.normal(6 * shift - 12, 5), -80, 80))),
}


def draw_scores(
    name: str, seed: int, size: int, prevalence: float, separation: float, dtype: type = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a distribution, and which of them are of lesions; both classes occur."""
    rng = np.random.default_rng(seed)
    labels = rng.random(size) < prevalence
    labels[:2] = [False, True]
    return DISTRIBUTIONS[name](rng, separation * labels).astype(dtype), labels


@st.composite
def score_sets(draw: Any, max_cases: int, max_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and labels of some cases, each with a range and a distribution of its own, but all of one type."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    cases = []
    for _ in range(draw(st.integers(1, max_cases))):
        scores, labels = draw_scores(
            draw(st.sampled_from(list(DISTRIBUTIONS))),
            seed=draw(st.integers(0, 2**31)),
            size=draw(st.sampled_from([50, 2, max_size // 8, max_size // 2, max_size])),
            prevalence=draw(st.sampled_from([0.001, 0.01, 0.1, 0.5, 0.9])),
            separation=draw(st.sampled_from([0, 1, 2, 4, -1])),
            dtype=np.float64,
        )
        location, scale = (draw(st.sampled_from([0, 1, 1e5])), 10.0 ** draw(st.integers(-6, 5)))
        cases.append(((location + scale * scores).astype(dtype), labels))
    return cases


def at_or_above(counts: ScoreCounts, thresholds: np.ndarray) -> np.ndarray:
    """How many scores lie at or above each threshold, says ``counts``."""
    above = np.append(counts.counts[::-1].cumsum()[::-1], 0)
    return above[np.searchsorted(counts.values, thresholds)]


def truly_at_or_above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(scores) - np.searchsorted(np.sort(scores), thresholds)


# ---------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True, eq=False)
class Case:
    """A case as its voxels; the last axis runs from the feet up."""

    anomaly_map: np.ndarray
    label: np.ndarray
    brain: np.ndarray
    spacing: tuple[float, float, float] = (1, 1, 1)

    @property
    def affine(self) -> np.ndarray:
        return np.diag([*self.spacing, 1.0])

    @property
    def lesion(self) -> np.ndarray:
        return self.label != 0

    @property
    def depth(self) -> int:
        """Number of slices with brain; the ragged brains have no gap."""
        return int(self.inside.any(axis=(0, 1)).sum())

    @property
    def inside(self) -> np.ndarray:
        return (self.brain > 0) | self.lesion


def make_case(
    seed: int,
    shape: tuple[int, int, int] = (9, 8, 14),
    lesion_share: float = 0.08,
    separation: float = 0.8,
    spacing: tuple[float, float, float] = (1, 1, 1),
) -> Case:
    """Some lesions, a map with ties that finds part of them and flags more, a ragged brain without the end slices."""
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.normal(size=shape), 0.7) for _ in range(2)]
    label = smooth[0] > np.quantile(smooth[0], 1 - lesion_share)
    label[..., [0, -1]] = False
    label[..., : shape[2] // 3] &= rng.random() < 0.5
    brain = rng.random(shape) < 0.85
    brain[..., [0, -1]] = False
    brain[..., 1] &= np.arange(shape[0] * shape[1]).reshape(shape[:2]) < 2  # a slice with too few voxels to count
    scores = smooth[1] / smooth[1].std() * 0.35 + separation * label
    return Case(np.round(scores, 1).astype(np.float32), label, brain, spacing)


CASES = (  # such that no metric is 0 or 1, with which many a wrong one would agree
    make_case(290, lesion_share=0.05),
    make_case(291, shape=(8, 9, 15), lesion_share=0.04, spacing=(1, 2, 1.5)),
    make_case(292, lesion_share=0, separation=0),
    make_case(293, lesion_share=0.12, separation=0.3),
    make_case(294, lesion_share=0.02, separation=0.9, spacing=(2, 2, 2)),
    make_case(295, shape=(8, 8, 12), lesion_share=0),
)


def evaluate(
    cases: Sequence[Case],
    threshold: float | None = THRESHOLD,
    settings: EvaluationSettings = SMALL,
    **keywords: Any,
) -> AnomalyEvaluation:
    """Evaluation of cases named case 0, case 1, …"""
    evaluation = AnomalyEvaluation(None if threshold is None else {"model": threshold}, settings)
    for index, case in enumerate(cases):
        evaluation.add(
            f"case {index}", {"model": case.anomaly_map}, case.label, case.brain, affine=case.affine, **keywords
        )
    return evaluation


def add_scores(
    evaluation: AnomalyEvaluation, case_id: str, scores: np.ndarray, labels: np.ndarray, **keywords: Any
) -> None:
    """Adds a case whose slices are of one voxel each."""
    evaluation.add(case_id, {"model": scores[None, None]}, labels[None, None], **keywords)


# -------------------------------------------------------------------------------------------------------- plain metrics


def voxels(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of all that counts."""
    return (
        np.concatenate([case.anomaly_map[case.inside] for case in cases]),
        np.concatenate([case.lesion[case.inside] for case in cases]),
    )


@cache
def slices(case: Case) -> list[tuple[float, bool, int]]:
    """Score, lesion and relative height of each slice that counts."""
    heights = [index for index in range(case.label.shape[2]) if case.inside[..., index].any()]
    rows = []
    for place, index in enumerate(heights):
        scores = sorted(case.anomaly_map[..., index][case.inside[..., index]].tolist(), reverse=True)
        if len(scores) >= TOP_K:
            height = place / max(1, len(heights) - 1)
            rows.append((float(np.mean(scores[:TOP_K])), bool(case.lesion[..., index].any()), height))
    return rows


def slice_columns(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for case in cases for row in slices(case)]
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def slabs(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Slabs of at least ``SLAB_DEPTH`` slices; where they do not come out even, the first are the longer."""
    scores, labels = [], []
    for case in cases:
        rows = slices(case)
        number = max(1, int(len(rows) * case.spacing[2] / SLAB_DEPTH + 1e-6))
        for index in range(number):
            length, longer = divmod(len(rows), number)
            start = index * length + min(index, longer)
            part = rows[start : start + length + (index < longer)]
            scores.append(max(row[0] for row in part))
            labels.append(any(row[1] for row in part))
    return np.array(scores), np.array(labels)


def volumes(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([max(row[0] for row in slices(case)) for case in cases]), np.array(
        [case.lesion.any() for case in cases]
    )


def shares_won(cases: Sequence[Case]) -> list[float]:
    """Of each slice with a lesion, against the others at its height; NaN where there is none."""
    rows = [(*row, 0.5 / max(1, case.depth - 1)) for case in cases for row in slices(case)]
    shares = []
    for score, has_lesion, height, half in rows:
        near = max(0.005, half) + 1e-7
        others = [other for other, lesion, place, _ in rows if abs(place - height) < near and not lesion]
        if has_lesion:
            shares.append(np.mean([(score > other) + 0.5 * (score == other) for other in others]) if others else NAN)
    return shares


def position_matched(cases: Sequence[Case]) -> float:
    shares = [share for share in shares_won(cases) if share == share]
    return float(np.mean(shares)) if shares else NAN


def matched_share(cases: Sequence[Case]) -> float:
    shares = shares_won(cases)
    return _share(sum(share == share for share in shares), len(shares))


def false_alarm_share(cases: Sequence[Case]) -> float:
    scores, has_lesion = slice_columns(cases)
    return _share((scores[~has_lesion] >= THRESHOLD).sum(), (~has_lesion).sum())


def plain_dice(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    flagged = scores >= threshold
    return 2 * (flagged & labels).sum() / (flagged.sum() + labels.sum()) if labels.any() else NAN


def plain_best_dice(scores: np.ndarray, labels: np.ndarray) -> float:
    return max(plain_dice(scores, labels, threshold) for threshold in np.unique(scores))


def plain_aupro(cases: Sequence[Case], limit: float = 0.3) -> float:
    """Share of each region at every threshold, by connected components, over the share of normal voxels."""
    normal = np.concatenate([case.anomaly_map[case.inside & ~case.lesion] for case in cases])
    regions = []
    for case in cases:
        numbers = components(case.lesion, connectivity=3)
        regions += [case.anomaly_map[numbers == number] for number in range(1, numbers.max() + 1)]
    if not regions or not len(normal):
        return NAN
    x, y = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([normal, *regions]))[::-1]:
        x.append((normal >= threshold).mean())
        y.append(np.mean([(region >= threshold).mean() for region in regions]))
    return plain_area(x, y, limit)


def plain_area(x: Sequence[float], y: Sequence[float], limit: float) -> float:
    """Mean height up to a limit, by the trapezoid rule on a curve that is cut, or continued, there."""
    last = sum(value <= limit for value in x)
    x, y = [*x[:last], limit], [*y[:last], np.interp(limit, x, y)]
    return float(trapezoid(y, x)) / limit


def parts(mask: np.ndarray, min_size: int) -> list[np.ndarray]:
    """Masks of the connected components, by 26 neighbours."""
    numbers = components(mask, connectivity=3)
    masks = [numbers == number for number in range(1, numbers.max() + 1)]
    return [part for part in masks if part.sum() >= min_size]


def regions_of(mask: np.ndarray) -> list[np.ndarray]:
    """Masks of the connected components of each slice, by 8 neighbours."""
    masks = []
    for index in range(mask.shape[2]):
        numbers = components(mask[..., index], connectivity=2)
        for number in range(1, numbers.max() + 1):
            masks.append(np.zeros_like(mask))
            masks[-1][..., index] = numbers == number
    return masks


@cache
def flagged_parts(case: Case, threshold: float, min_size: int) -> tuple[list, list, list[list], np.ndarray]:
    """Flagged components, lesions, the regions of each lesion, and the lesions that are too small."""
    flagged = parts(case.inside & (case.anomaly_map >= threshold), min_size)
    lesions = parts(case.lesion, min_size)
    ignored = case.lesion & ~sum(lesions, np.zeros_like(case.lesion))
    return flagged, lesions, [regions_of(lesion) for lesion in lesions], ignored


@cache
def found_at(case: Case, score: float, threshold: float = THRESHOLD, min_size: int = MIN_SIZE) -> dict[str, np.ndarray]:
    """Number found, of false alarms and of targets when only what scores at least ``score`` is looked at."""
    flagged, lesions, tracks, ignored = flagged_parts(case, threshold, min_size)
    seen = [part for part in flagged if case.anomaly_map[part].max() >= score]
    right = [part for part in seen if 10 * (part & case.lesion).sum() >= part.sum()]
    covered = sum(right, np.zeros_like(case.lesion))
    found = sum(bool(10 * (covered & lesion).sum() >= lesion.sum()) for lesion in lesions)

    regions = [region for part in flagged for region in regions_of(part) if case.anomaly_map[region].max() >= score]
    targets = [target for track in tracks for target in track]
    pairs = np.array(
        [[10 * (one & other).sum() >= (one | other).sum() for other in targets] for one in regions], dtype=bool
    ).reshape(len(regions), len(targets))
    false = sum(not any(row) and not (region & ignored).any() for row, region in zip(pairs, regions, strict=True))
    is_found = iter(pairs.any(axis=0))
    of_track = [[next(is_found) for _ in track] for track in tracks]
    return {
        "lesions": np.array([found, len(seen) - len(right), len(lesions)]),
        "regions": np.array([pairs.any(axis=0).sum(), false, len(targets)]),
        "tracks": np.array([sum(10 * sum(track) >= len(track) for track in of_track), false, len(lesions)]),
    }


@cache
def scores_of_parts(case: Case, threshold: float, min_size: int) -> set[float]:
    flagged = flagged_parts(case, threshold, min_size)[0]
    return {float(case.anomaly_map[r].max()) for part in flagged for r in [part, *regions_of(part)]}


def free_response(
    cases: Sequence[Case], kind: str, units: float, threshold: float = THRESHOLD, min_size: int = MIN_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Share found over false alarms per unit, from nothing on, for every threshold of the components' scores."""
    scores = set().union(*(scores_of_parts(case, threshold, min_size) for case in cases))
    places = [np.inf, *sorted(scores, reverse=True)]
    totals = np.array([sum(found_at(case, score, threshold, min_size)[kind] for case in cases) for score in places])
    found, false, targets = totals.T
    return false / units, found / targets if targets[0] else np.full(len(found), NAN)


def plain_froc_score(cases: Sequence[Case]) -> float:
    x, y = free_response(cases, "lesions", len(cases))
    return float(compute_froc_score(x[::-1], y[::-1]))


def plain_criterion(cases: Sequence[Case], kind: str) -> float:
    return plain_area(*map(list, free_response(cases, kind, sum(len(slices(case)) for case in cases))), limit=1)


@cache
def boxes_found_at(case: Case, threshold: float) -> np.ndarray:
    """Number of regions and tracks that boxes find at a threshold, and of the boxes that find none, pair by pair."""

    def boxes(mask: np.ndarray) -> list[np.ndarray]:
        """Masks of the boxes around the components of slices."""
        filled = []
        for part in regions_of(mask):
            box = ndimage.find_objects(part.astype(int))[0]
            filled.append(np.zeros_like(part))
            filled[-1][box] = True
        return filled

    tracks = [boxes(lesion) for lesion in parts(case.lesion, 1)]
    flagged = boxes(case.inside & (case.anomaly_map >= threshold))

    def are_partners(one: np.ndarray, other: np.ndarray) -> bool:
        return 10 * (one & other).sum() >= (one | other).sum()

    found = [[any(are_partners(box, region) for box in flagged) for region in track] for track in tracks]
    false = [not any(are_partners(box, region) for track in tracks for region in track) for box in flagged]
    return np.array([sum(map(sum, found)), sum(10 * sum(track) >= len(track) for track in found), sum(false)])


def box_thresholds(case: Case) -> list[float]:
    """Thresholds that flag at most each of some shares of a case's voxels, in geometric steps, or its highest score."""
    scores = np.sort(case.anomaly_map[case.inside])[::-1]
    allowed = [int(len(scores) * 10 ** (-5 * step / (BOX_LEVELS - 1)) + 1e-9) for step in range(BOX_LEVELS)]
    chosen = [[score for score in np.unique(scores) if (scores >= score).sum() <= number] for number in allowed]
    return [min(values, default=scores[0]) for values in chosen]


def plain_box_criterion(cases: Sequence[Case], column: int) -> float:
    """Threshold by threshold; a case has at each what it has at its own next higher one."""
    targets = np.sum([[len(regions_of(case.lesion)), len(parts(case.lesion, 1))] for case in cases], axis=0)
    frames = sum(len(slices(case)) for case in cases)
    own = [box_thresholds(case) for case in cases]
    x, y = [0.0], [0.0]
    for threshold in sorted({value for values in own for value in values}, reverse=True):
        counts = np.zeros(3)
        for case, values in zip(cases, own, strict=True):
            if higher := [value for value in values if value >= threshold]:
                counts += boxes_found_at(case, min(higher))
        x.append(max(x[-1], counts[2] / frames))
        y.append(_share(counts[column], targets[column]))
    return plain_area(x, y, limit=1)


def lesion_volumes(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Flagged and true lesion volume in ml."""
    size = np.array([np.prod(case.spacing) / 1000 for case in cases])
    flagged = np.array([(case.inside & (case.anomaly_map >= THRESHOLD)).sum() for case in cases])
    return flagged * size, np.array([case.lesion.sum() for case in cases]) * size


def plain_correlation(cases: Sequence[Case]) -> float:
    flagged, true = lesion_volumes(cases)
    return float(np.corrcoef(flagged, true)[0, 1]) if len(set(flagged)) > 1 and len(set(true)) > 1 else NAN


def at_threshold(cases: Sequence[Case]) -> np.ndarray:
    return sum(found_at(case, THRESHOLD)["lesions"] for case in cases)


def mean_of(metric: Callable[[Sequence[Case]], float]) -> Callable[[Sequence[Case]], float]:
    """Mean over the cases in which a metric is defined."""

    def mean(cases: Sequence[Case]) -> float:
        values = [metric([case]) for case in cases]
        defined = [value for value in values if not np.isnan(value)]
        return float(np.mean(defined)) if defined else NAN

    return mean


def _of_both_classes(scores: np.ndarray, labels: np.ndarray) -> float:
    return NAN if labels.all() else average_precision_of(scores, labels)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else NAN


PLAIN_METRICS: dict[str, Callable[[Sequence[Case]], float]] = {
    "slice_auroc": lambda cases: auroc_of(*slice_columns(cases)),
    "slice_average_precision": lambda cases: average_precision_of(*slice_columns(cases)),
    "slice_auroc_position_matched": position_matched,
    "slice_position_matched_share": matched_share,
    "slice_auroc_macro": mean_of(lambda cases: auroc_of(*slice_columns(cases))),
    "slice_false_alarm_share": false_alarm_share,
    "pixel_auroc": lambda cases: auroc_of(*voxels(cases)),
    "pixel_average_precision": lambda cases: average_precision_of(*voxels(cases)),
    "pixel_auroc_per_case": mean_of(lambda cases: auroc_of(*voxels(cases))),
    "pixel_average_precision_per_case": mean_of(lambda cases: average_precision_of(*voxels(cases))),
    "pixel_aupro": plain_aupro,
    "dice_at_threshold": lambda cases: plain_dice(*voxels(cases), THRESHOLD),
    "dice_at_threshold_per_case": mean_of(lambda cases: plain_dice(*voxels(cases), THRESHOLD)),
    "best_dice_oracle": lambda cases: plain_best_dice(*voxels(cases)),
    "best_dice_oracle_per_case": mean_of(lambda cases: plain_best_dice(*voxels(cases))),
    "lesion_sensitivity": lambda cases: _share(at_threshold(cases)[0], at_threshold(cases)[2]),
    "false_positives_per_volume": lambda cases: at_threshold(cases)[1] / len(cases),
    "froc_score": plain_froc_score,
    "rbdc": lambda cases: plain_criterion(cases, "regions"),
    "tbdc": lambda cases: plain_criterion(cases, "tracks"),
    "rbdc_of_boxes": lambda cases: plain_box_criterion(cases, 0),
    "tbdc_of_boxes": lambda cases: plain_box_criterion(cases, 1),
    "volume_auroc": lambda cases: auroc_of(*volumes(cases)),
    "volume_average_precision": lambda cases: _of_both_classes(*volumes(cases)),
    "slab_auroc": lambda cases: auroc_of(*slabs(cases)),
    "slab_average_precision": lambda cases: _of_both_classes(*slabs(cases)),
    "lesion_volume_bias": lambda cases: float(np.mean(np.subtract(*lesion_volumes(cases)))),
    "lesion_volume_correlation": plain_correlation,
}


# ------------------------------------------------------------------------------------------------------------ processes


def in_two_processes(functions: Sequence[Callable[[int], Any]], folder: Path) -> list[tuple[Any, ...]]:
    """What functions of the rank return, for each function from both of two processes that can reach each other."""
    multiprocessing.spawn(_run, (functions, folder), nprocs=2)
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return list(zip(*results, strict=True))


def _run(rank: int, functions: Sequence[Callable[[int], Any]], folder: Path) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    torch.save([function(rank) for function in functions], folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
