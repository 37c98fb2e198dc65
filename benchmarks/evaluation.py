"""Time and peak memory of an evaluation of the size of BRATS, against scikit-learn.

Every measurement runs in a process of its own, whose peak memory is its own. scikit-learn gets the scores of all voxels
in one array, as it needs them, of twice as many volumes each time until it takes more than the memory that our
evaluation of all volumes may take; the ratio is that of the times for the same volumes at the largest such size. Making
the scores is not timed.

    python benchmarks/evaluation.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np

SHAPE = (240, 240, 155)
LIMIT = 2.0  # GiB
THRESHOLD = 0.93


def synthetic_cases(volumes: int, everywhere: bool) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
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
        yield 1 / (1 + np.exp(-logits)), label.astype(np.uint8), None if everywhere else brain


def ours(
    volumes: int, everywhere: bool, threshold: float | None, resamples: int, methods: tuple[str, ...] = ("map",)
) -> dict[str, float]:
    """All figures, or without a threshold those that need none, of one method or of a second one as well."""
    from ssmctb_monai.metrics import FIGURES, AnomalyEvaluation, EvaluationSettings

    thresholds = None if threshold is None else dict.fromkeys(methods, threshold)
    evaluation = AnomalyEvaluation(thresholds, EvaluationSettings(resamples=max(1, resamples)))
    seconds = 0.0
    for index, (anomaly_map, label, brain) in enumerate(synthetic_cases(volumes, everywhere)):
        maps = {"map": anomaly_map, "baseline": anomaly_map[::-1]}
        start = time.perf_counter()
        evaluation.add(f"case {index}", {method: maps[method] for method in methods}, label, brain)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    by_method = {method: {name: evaluation.figure(method, name) for name in FIGURES} for method in methods}
    result = {**by_method["map"], "seconds": seconds + time.perf_counter() - start}
    if resamples:
        start = time.perf_counter()
        evaluation.estimates("map")
        result["interval_seconds"] = time.perf_counter() - start
    return result


def two_figures(volumes: int, everywhere: bool) -> dict[str, float]:
    """AUROC and average precision of the voxels, from the same statistic."""
    from ssmctb_monai.metrics import auroc, average_precision
    from ssmctb_monai.metrics.score_counts import ScoreCounts
    from ssmctb_monai.metrics.score_table import ScoreTable

    seconds, normal, lesion = 0.0, [], []
    for anomaly_map, label, brain in synthetic_cases(volumes, everywhere):
        start = time.perf_counter()
        is_lesion = label > 0
        is_normal = ~is_lesion if brain is None else brain & ~is_lesion
        normal.append(ScoreCounts.of(anomaly_map[is_normal]))
        lesion.append(ScoreCounts.of(anomaly_map[is_lesion]))
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    table, once = ScoreTable(normal, lesion), np.ones((1, volumes))
    area, precision = (float(table.apply(figure, once)[0]) for figure in (auroc, average_precision))
    seconds += time.perf_counter() - start
    return {"pixel_auroc": area, "pixel_average_precision": precision, "seconds": seconds}


def scikit_learn(volumes: int, everywhere: bool) -> dict[str, float]:
    """AUROC and average precision of the voxels."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, truth = [], []
    for anomaly_map, label, brain in synthetic_cases(volumes, everywhere):
        inside = np.ones(SHAPE, dtype=bool) if brain is None else brain | (label > 0)
        scores.append(anomaly_map[inside])
        truth.append(label[inside] > 0)
    all_scores, all_truth = np.concatenate(scores), np.concatenate(truth)
    scores.clear()
    truth.clear()
    start = time.perf_counter()
    area, precision = roc_auc_score(all_truth, all_scores), average_precision_score(all_truth, all_scores)
    seconds = time.perf_counter() - start
    return {"pixel_auroc": float(area), "pixel_average_precision": float(precision), "seconds": seconds}


def _measured(function: Callable[..., dict[str, float]], arguments: tuple, results: multiprocessing.Queue) -> None:
    result = function(*arguments)
    results.put({**result, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})


def measure(function: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_measured, args=(function, arguments, results))
    process.start()
    while process.is_alive() and results.empty():
        process.join(0.1)
    if results.empty() and process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}.")
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=180)
    parser.add_argument("--everywhere", action="store_true", help="count all voxels, not those of the brain only")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap samples for the intervals; 0 for none")
    settings = parser.parse_args()

    two = ("map", "baseline")
    everything = measure(ours, settings.volumes, settings.everywhere, THRESHOLD, settings.resamples, two)
    print(
        f"{settings.volumes} volumes of {'x'.join(map(str, SHAPE))}, all figures of a method and a baseline: "
        f"{everything['seconds']:.1f} s, "
        f"intervals {everything.get('interval_seconds', 0):.1f} s, peak memory {everything['gib']:.2f} GiB"
    )
    volumes, reference = 1, measure(scikit_learn, 1, settings.everywhere)
    while 2 * volumes <= settings.volumes:
        larger = measure(scikit_learn, 2 * volumes, settings.everywhere)
        if larger["gib"] > LIMIT:
            print(f"scikit-learn takes {larger['gib']:.2f} GiB for {2 * volumes} volumes")
            break
        volumes, reference = 2 * volumes, larger
    print(f"scikit-learn, {volumes} volumes: {reference['seconds']:.2f} s, peak memory {reference['gib']:.2f} GiB")
    for title, result in {
        "the same two figures": measure(two_figures, volumes, settings.everywhere),
        "all figures, no threshold": measure(ours, volumes, settings.everywhere, None, 0),
        "all figures": measure(ours, volumes, settings.everywhere, THRESHOLD, 0),
    }.items():
        error = max(abs(result[name] - reference[name]) for name in ("pixel_auroc", "pixel_average_precision"))
        print(
            f"{title}: {result['seconds']:.2f} s, {reference['seconds'] / result['seconds']:.1f} times faster, "
            f"peak memory {result['gib']:.2f} GiB, largest difference {error:.1e}"
        )


if __name__ == "__main__":
    main()
