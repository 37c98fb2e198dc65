"""Time and peak memory of an evaluation of the size of BRATS, against scikit-learn.

Every measurement runs in a process of its own, whose peak memory is its own. scikit-learn gets the scores of all voxels
in one array, as it needs them, of twice as many volumes each time until it takes more than the memory that our
evaluation of all volumes may take; the ratio is that of the times for the same volumes at the largest such size. Making
the scores is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from benchmarks.measure import Row, in_fresh_process

SHAPE = (240, 240, 155)
VOLUMES, RESAMPLES = 180, 1000
LIMIT = 2.0  # GiB
THRESHOLD = 0.93


def synthetic_cases(volumes: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Smooth noise as a network gives it, higher in a ball in an ellipsoid: anomaly map, label and brain mask."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), 1.5)
    noise /= noise.std()
    grid = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in SHAPE), indexing="ij", sparse=True)
    brain = (grid[0] / 0.58) ** 2 + (grid[1] / 0.72) ** 2 + (grid[2] / 0.9) ** 2 < 1
    for _ in range(volumes):
        centre = rng.uniform(-0.3, 0.3, 3)
        label = sum((axis - place) ** 2 for axis, place in zip(grid, centre, strict=True)) < rng.uniform(0.02, 0.08)
        logits = np.roll(noise, rng.integers(0, 60, 3), axis=(0, 1, 2)) + 3 * label
        yield 1 / (1 + np.exp(-logits)), label.astype(np.uint8), brain


def ours(
    volumes: int, threshold: float | None, resamples: int, methods: tuple[str, ...] = ("map",)
) -> dict[str, float]:
    """All metrics, or without a threshold those that need none, of one method or of a second one as well."""
    from ssmctb_monai.metrics import METRICS, AnomalyEvaluation, EvaluationSettings

    thresholds = None if threshold is None else dict.fromkeys(methods, threshold)
    evaluation = AnomalyEvaluation(thresholds, EvaluationSettings(resamples=max(1, resamples)))
    seconds = 0.0
    for index, (anomaly_map, label, brain) in enumerate(synthetic_cases(volumes)):
        maps = {"map": anomaly_map, "baseline": anomaly_map[::-1]}
        start = time.perf_counter()
        evaluation.add(f"case {index}", {method: maps[method] for method in methods}, label, brain)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    by_method = {method: {name: evaluation.value(method, name) for name in METRICS} for method in methods}
    result = {**by_method["map"], "seconds": seconds + time.perf_counter() - start}
    if resamples:
        start = time.perf_counter()
        evaluation.estimates("map")
        result["interval_seconds"] = time.perf_counter() - start
    return result


def two_metrics(volumes: int) -> dict[str, float]:
    """AUROC and average precision of the voxels, from the same statistic."""
    from ssmctb_monai.metrics import auroc, average_precision
    from ssmctb_monai.metrics.score_counts import ScoreCounts
    from ssmctb_monai.metrics.score_table import ScoreTable

    seconds, normal, lesion = 0.0, [], []
    for anomaly_map, label, brain in synthetic_cases(volumes):
        start = time.perf_counter()
        is_lesion = label > 0
        is_normal = brain & ~is_lesion
        normal.append(ScoreCounts.of(anomaly_map[is_normal]))
        lesion.append(ScoreCounts.of(anomaly_map[is_lesion]))
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    table, once = ScoreTable(normal, lesion), np.ones((1, volumes))
    area, precision = (float(table.apply(metric, once)[0]) for metric in (auroc, average_precision))
    seconds += time.perf_counter() - start
    return {"pixel_auroc": area, "pixel_average_precision": precision, "seconds": seconds}


def scikit_learn(volumes: int) -> dict[str, float]:
    """AUROC and average precision of the voxels."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, truth = [], []
    for anomaly_map, label, brain in synthetic_cases(volumes):
        inside = brain | (label > 0)
        scores.append(anomaly_map[inside])
        truth.append(label[inside] > 0)
    all_scores, all_truth = np.concatenate(scores), np.concatenate(truth)
    scores.clear()
    truth.clear()
    start = time.perf_counter()
    area, precision = roc_auc_score(all_truth, all_scores), average_precision_score(all_truth, all_scores)
    seconds = time.perf_counter() - start
    return {"pixel_auroc": float(area), "pixel_average_precision": float(precision), "seconds": seconds}


def rows() -> Iterator[Row]:
    size = "x".join(map(str, SHAPE))
    everything, memory = in_fresh_process(ours, VOLUMES, THRESHOLD, RESAMPLES, ("map", "baseline"))
    yield Row(
        f"evaluation, {VOLUMES} volumes of {size}, all metrics of a method and a baseline",
        "",
        everything["seconds"],
        None,
        "≤ 2 GiB",
        memory,
        note=f"intervals from {RESAMPLES} resamples {everything['interval_seconds']:.1f} s",
    )
    one, memory = in_fresh_process(ours, 1, THRESHOLD, 0)
    yield Row(f"evaluation, one volume of {size}, all metrics", "", one["seconds"], None, "≤ 0.25 s", memory)
    volumes, largest, reference = 0, (0.0, 0.0), {}
    while 2 * volumes <= VOLUMES:
        result, memory = in_fresh_process(scikit_learn, 2 * volumes or 1)
        if memory > LIMIT:
            break
        volumes, reference, largest = 2 * volumes or 1, result, (result["seconds"], memory)
    for title, wanted, function, arguments in (
        ("AUROC and average precision", "≥ 20", two_metrics, ()),
        ("all metrics that need no threshold", "≥", ours, (None, 0)),
        ("all metrics", "≥", ours, (THRESHOLD, 0)),
    ):
        result, memory = in_fresh_process(function, volumes, *arguments)
        error = max(abs(result[name] - reference[name]) for name in ("pixel_auroc", "pixel_average_precision"))
        yield Row(
            f"evaluation, {volumes} volumes, {title}",
            f"scikit-learn's AUROC and average precision, {largest[0]:.1f} s, {largest[1]:.2f} GiB",
            result["seconds"],
            largest[0] / result["seconds"],
            wanted,
            memory,
            note=f"largest difference {error:.1e}",
        )
