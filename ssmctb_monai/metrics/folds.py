"""Means of metrics over the folds of a cross-validation, with intervals from the patients of each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike

from ssmctb_monai.checks import Named, check_file
from ssmctb_monai.files import whole_file
from ssmctb_monai.metrics.definitions import METRICS
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation, Estimate


@dataclass(frozen=True)
class ResampledMetrics:
    """All metrics of an evaluation, over its cases and over resamples of its patients: what means over folds are of.

    Attributes:
        patients: names of the patients, in alphabetical order.
        seed: seed of the resamples.
        values: by method and metric, the metric over all cases, then over each resample, shape (1 + resamples,); NaN
            where it is not defined.

    Example:
        >>> ResampledMetrics.of(evaluation).save("fold0.npz")
        >>> mean_over_folds([ResampledMetrics.load(f"fold{fold}.npz") for fold in range(3)], "model")["slice_auroc"]
    """

    patients: tuple[str, ...]
    seed: int
    values: Mapping[str, Mapping[str, np.ndarray]]

    @classmethod
    def of(cls, evaluation: AnomalyEvaluation) -> ResampledMetrics:
        """Takes the metrics of an evaluation.

        Args:
            evaluation: evaluation of the test cases of one fold; its settings have another seed in each fold.
        """
        return cls(evaluation.patients, evaluation.settings.seed, evaluation.resampled)

    def save(self, path: PathLike) -> None:
        """Writes the metrics, whole or not at all.

        Args:
            path: file to write, ``.npz``.
        """
        arrays: dict[str, Any] = {"patients": self.patients, "seed": self.seed}
        for method, metrics in self.values.items():
            arrays |= {f"{method}/{name}": array for name, array in metrics.items()}
        with whole_file(Path(path)) as unfinished:
            np.savez_compressed(unfinished, **arrays)

    @classmethod
    def load(cls, path: PathLike) -> ResampledMetrics:
        """Reads what :meth:`save` wrote.

        Args:
            path: file.

        Raises:
            FileNotFoundError: when there is no such file.
        """
        values: dict[str, dict[str, np.ndarray]] = {}
        with np.load(check_file(path, "ResampledMetrics.save writes it")) as arrays:
            patients, seed = tuple(arrays["patients"].tolist()), int(arrays["seed"])
            for key in arrays.files:
                method, slash, name = key.rpartition("/")
                if slash:
                    values.setdefault(method, {})[name] = arrays[key]
        return cls(patients, seed, values)


def mean_over_folds(runs: Sequence[ResampledMetrics], method: str) -> dict[str, Estimate]:
    """Averages the metrics of a method over folds, with intervals.

    A metric is computed in each fold, over its pooled cases, and averaged over the folds; several runs of one fold,
    such as trainings with several seeds, are averaged before. The interval comes from resampling the patients within
    each fold, the same way for all its runs, and independently of the other folds: it says what other test patients
    would change, not what other training patients or seeds would.

    Args:
        runs: metrics of each run; runs on the same patients are of one fold.
        method: name of the method.

    Returns:
        Estimates by the metric's name; not defined where the metric is not in every run.

    Raises:
        KeyError: when a run has no such method.
        ValueError: when there is no run, folds share patients, or their resamples are not independent or not as many.

    Example:
        >>> mean_over_folds([ResampledMetrics.of(evaluation) for evaluation in folds], "model")["slice_auroc"].interval
    """
    return _estimates(runs, _means(runs, method))


def difference_over_folds(
    runs: Sequence[ResampledMetrics],
    method: str,
    reference_runs: Sequence[ResampledMetrics],
    reference: str,
) -> dict[str, Estimate]:
    """Averages the paired differences of two methods over folds, with intervals from the same resamples.

    Args:
        runs: as in :func:`mean_over_folds`.
        method: name of a method.
        reference_runs: runs on the same folds whose metrics are subtracted; the same for two methods of one evaluation.
        reference: name of the method in them.

    Returns:
        Estimates of the difference by the metric's name.

    Raises:
        KeyError: when a run has no such method.
        ValueError: as :func:`mean_over_folds`, and when the folds are not the same.

    Example:
        >>> difference_over_folds(runs, "model", runs, "baseline_flair")["slice_auroc"].interval
    """
    ours, theirs = _means(runs, method), _means(reference_runs, reference)
    if (of_ours := _seeds(runs)) != (of_theirs := _seeds(reference_runs)):
        raise ValueError(f"The folds differ, so that differences are not paired: {of_ours} and {of_theirs}.")
    return _estimates(runs, {name: ours[name] - theirs[name] for name in ours if name in theirs})


def _seeds(runs: Sequence[ResampledMetrics]) -> dict[tuple[str, ...], int]:
    """Seed of the resamples of each fold, by its patients."""
    seeds = {run.patients: run.seed for run in runs}
    if not seeds:
        raise ValueError("There is no run to average.")
    for one, other in combinations(seeds, 2):
        if shared := sorted({*one} & {*other}):
            raise ValueError(f"Two folds share patients: {', '.join(shared)}.")
    if len(set(seeds.values())) < len(seeds) or any(run.seed != seeds[run.patients] for run in runs):
        raise ValueError(
            "Resamples need one seed a fold, another in each, else folds are not independent: evaluate each with "
            f"EvaluationSettings(seed=…) of its own; got {[run.seed for run in runs]}."
        )
    return seeds


def _means(runs: Sequence[ResampledMetrics], method: str) -> dict[str, np.ndarray]:
    """Means over folds of each metric, over all cases and resample by resample."""
    folds = [[run.values[method] for run in runs if run.patients == patients] for patients in _seeds(runs)]
    lengths = {len(array) for fold in folds for values in fold for array in values.values()}
    if len(lengths) > 1:
        raise ValueError(f"Runs differ in their numbers of resamples: {sorted(length - 1 for length in lengths)}.")
    return {
        name: np.mean([np.mean([run[name] for run in fold], axis=0) for fold in folds], axis=0)
        for name in METRICS
        if all(name in run for fold in folds for run in fold)
    }


def _estimates(runs: Sequence[ResampledMetrics], means: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    fewest = min(len(run.patients) for run in runs)
    estimates = {
        name: Estimate.of(values, fewest, f"not defined in every fold: {METRICS[name].undefined}")
        for name, values in means.items()
    }
    return Named("metric", estimates)
