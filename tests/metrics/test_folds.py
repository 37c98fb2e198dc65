"""Means of metrics over folds: values and intervals by hand, pairing, independence of folds."""

import numpy as np
import pytest
from metric_checks import make_case

from ssmctb_monai.metrics import (
    METRICS,
    AnomalyEvaluation,
    EvaluationSettings,
    ResampledMetrics,
    difference_over_folds,
    mean_over_folds,
)

RESAMPLES = 200


def made(patients, seed, **methods):
    """Figures that are all alike: the given values, one more than there are resamples."""
    values = {method: {name: np.array(given, float) for name in METRICS} for method, given in methods.items()}
    return ResampledMetrics(tuple(patients), seed, values)


def evaluated(patients, seed, shift=0.0, first_case=0):
    settings = EvaluationSettings(top_k=3, min_lesion_size=1, resamples=RESAMPLES, seed=seed)
    evaluation = AnomalyEvaluation({"model": 0.5}, settings)
    for index, patient in enumerate(patients):
        case = make_case(first_case + index, lesion_share=0.02)
        maps = {"model": case.anomaly_map + shift * case.lesion, "baseline": case.anomaly_map}
        evaluation.add(patient, maps, case.label, case.brain)
    return evaluation


def test_mean_and_interval_by_hand():
    runs = [made("ab", 0, model=[0.5, 0.1, 0.3, 0.5]), made("cd", 1, model=[0.7, 0.3, 0.7, 0.3])]
    estimate = mean_over_folds(runs, "model")["slice_auroc"]
    assert estimate.value == pytest.approx(0.6)
    assert estimate.interval == pytest.approx(np.quantile([0.2, 0.5, 0.4], [0.025, 0.975]))
    assert estimate.reason is None


def test_seeds_of_a_fold_are_averaged_before_folds():
    runs = [made("ab", 0, model=[0.2, 0.2, 0.2]), made("ab", 0, model=[0.4, 0.4, 0.8]), made("cd", 1, model=[0.9] * 3)]
    estimate = mean_over_folds(runs, "model")["pixel_auroc"]
    assert estimate.value == pytest.approx(0.6)
    assert estimate.interval == pytest.approx(np.quantile([0.6, 0.7], [0.025, 0.975]))


def test_differences_are_of_the_same_resamples():
    runs = [
        made("ab", 0, model=[0.6, 0.2, 0.9], other=[0.5, 0.1, 0.8]),
        made("cd", 1, model=[0.6] * 3, other=[0.3] * 3),
    ]
    estimate = difference_over_folds(runs, "model", runs, "other")["slice_auroc"]
    assert estimate.value == pytest.approx(0.2)
    assert estimate.interval == pytest.approx((0.2, 0.2))
    opposite = difference_over_folds(runs, "other", runs[::-1], "model")["slice_auroc"]  # folds come in any order
    assert opposite.value == pytest.approx(-0.2)
    assert opposite.interval == pytest.approx((-0.2, -0.2))


def test_differences_to_fewer_seeds_on_the_same_folds():
    runs = [made("ab", 0, model=[0.5] * 3), made("ab", 0, model=[0.7] * 3)]
    assert difference_over_folds(runs, "model", runs[:1], "model")["slice_auroc"].value == pytest.approx(0.1)


def test_metrics_that_are_not_defined():
    nan = float("nan")
    undefined = mean_over_folds([made("ab", 0, model=[0.5] * 3), made("cd", 1, model=[nan] * 3)], "model")["tbdc"]
    assert (undefined.value, undefined.interval) == (None, None)
    assert undefined.reason == f"not defined in every fold: {METRICS['tbdc'].undefined}"
    half = mean_over_folds([made("ab", 0, model=[0.5, nan, 0.5]), made("cd", 1, model=[0.7] * 3)], "model")["tbdc"]
    assert half.value == pytest.approx(0.6)
    assert half.interval is None
    assert half.reason.startswith("too few resamples are defined")


def test_a_fold_of_one_patient_has_no_interval():
    estimate = mean_over_folds([made("ab", 0, model=[0.5] * 3), made("c", 1, model=[0.7] * 3)], "model")["slice_auroc"]
    assert estimate.value == pytest.approx(0.6)
    assert (estimate.interval, estimate.reason) == (None, "an interval needs two patients")


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no run"),
        ([made("ab", 0, model=[1, 1]), made("bc", 1, model=[1, 1])], "share patients: b"),
        ([made("ab", 0, model=[1, 1]), made("cd", 0, model=[1, 1])], r"one seed a fold.*\[0, 0\]"),
        ([made("ab", 0, model=[1, 1]), made("ab", 1, model=[1, 1])], r"one seed a fold.*\[0, 1\]"),
        ([made("ab", 0, model=[1, 1]), made("cd", 1, model=[1, 1, 1])], r"numbers of resamples: \[1, 2\]"),
    ],
)
def test_runs_that_are_no_folds(runs, message):
    with pytest.raises(ValueError, match=message):
        mean_over_folds(runs, "model")


@pytest.mark.parametrize("others", [made("cd", 0, model=[1, 1]), made("ab", 3, model=[1, 1])])
def test_differences_need_the_same_folds(others):
    with pytest.raises(ValueError, match="The folds differ"):
        difference_over_folds([made("ab", 0, model=[1, 1])], "model", [others], "model")


def test_unknown_method():
    with pytest.raises(KeyError, match="ours"):
        mean_over_folds([made("ab", 0, model=[1, 1])], "ours")


def test_metrics_of_evaluations_and_their_files(tmp_path):
    evaluations = [evaluated(list("bacde"), seed=4, shift=0.2), evaluated(list("ihgf"), seed=5, first_case=7)]
    runs = []
    for index, evaluation in enumerate(evaluations):
        ResampledMetrics.of(evaluation).save(tmp_path / "new" / f"{index}.npz")
        runs.append(ResampledMetrics.load(tmp_path / "new" / f"{index}.npz"))
    assert [(run.patients, run.seed) for run in runs] == [(tuple("abcde"), 4), (tuple("fghi"), 5)]
    estimates = mean_over_folds(runs, "baseline")
    for name in ("slice_auroc", "best_dice_oracle"):
        by_hand = np.mean([evaluation.value("baseline", name) for evaluation in evaluations])
        assert estimates[name].value == pytest.approx(by_hand)
        values = sum(evaluation.resampled["baseline"][name][1:] for evaluation in evaluations) / 2
        assert estimates[name].interval == pytest.approx(np.nanquantile(values, [0.025, 0.975]))
    assert estimates["dice_at_threshold"].value is None
    assert mean_over_folds(runs, "model")["dice_at_threshold"].value is not None
    gain = difference_over_folds(runs, "model", runs, "baseline")["pixel_auroc"]
    assert gain.value > 0
    alone = [mean_over_folds([run], "model") for run in runs]
    for run, evaluation in zip(alone, evaluations, strict=True):
        assert run["pixel_auroc"] == evaluation.estimates("model")["pixel_auroc"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["0.npz", "1.npz"]


def test_folds_with_seeds_of_their_own_are_independent():
    """The interval of a mean of two folds of one width is narrower by √2, which it is not with one seed for both."""
    first, second = (evaluated([f"{seed}{index}" for index in range(12)], seed=seed) for seed in range(2))
    widths = [np.ptp(each.estimates("model")["pixel_auroc"].interval) for each in (first, second)]
    both = mean_over_folds([ResampledMetrics.of(each) for each in (first, second)], "model")["pixel_auroc"]
    assert np.ptp(both.interval) == pytest.approx(np.mean(widths) / np.sqrt(2), rel=0.2)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz: ResampledMetrics.save writes it"):
        ResampledMetrics.load(tmp_path / "none.npz")
