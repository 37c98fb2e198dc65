"""Evaluation of cases one by one: intervals, differences, errors, several processes."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from metric_checks import CASES, PLAIN_METRICS, SMALL, add_scores, auroc_of, evaluate, make_case
from monai.data import MetaTensor

from ssmctb_monai.metrics import METRICS, AnomalyEvaluation, EvaluationSettings, LabelFreeThreshold
from ssmctb_monai.metrics.evaluation import CONFIDENCE, DEFINED

VOXELS = EvaluationSettings(top_k=1, min_lesion_size=1, resamples=400)
NAMES = ("model", "baseline")


def two_methods(cases, patients=None, settings=SMALL, thresholds=None, metrics=tuple(METRICS)):
    thresholds = {"model": 0.5, "baseline": 0.3} if thresholds is None else thresholds
    evaluation = AnomalyEvaluation(thresholds, settings, metrics)
    for index, case in enumerate(cases):
        maps = {"model": case.anomaly_map, "baseline": np.flip(case.anomaly_map, 0) + case.label}
        patient = None if patients is None else patients[index]
        evaluation.add(f"case {index}", maps, case.label, case.brain, patient_id=patient, affine=case.affine)
    return evaluation


def state(evaluation):
    """All that an evaluation remembers of its cases."""
    return pickle.dumps((evaluation.statistics, evaluation.views, evaluation.failed))


# ------------------------------------------------------------------------------------------------------------ intervals


def drawn_patients(count, resamples, seed=0):
    """How often each patient is drawn, by the generator that the evaluation's seed starts."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)


def test_intervals_against_a_plain_bootstrap():
    """Patients are drawn and all their cases come along: plain metrics of the cases that were drawn, repeated."""
    settings = EvaluationSettings(**{**vars(SMALL), "resamples": 40, "seed": 5})
    patients = ["b", "a", "b", "c", "a", "d"]  # in no order
    evaluation = two_methods(CASES, patients, settings)
    estimates = evaluation.estimates("model")
    drawn = drawn_patients(4, 40, seed=5)
    assert (CONFIDENCE, DEFINED) == (0.95, 0.9)
    checked = 0
    for name, plain in PLAIN_METRICS.items():
        values = []
        for times in drawn:
            cases = [c for c, patient in zip(CASES, patients, strict=True) for _ in range(times["abcd".index(patient)])]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values.append(plain(cases))
        defined = np.array(values)[~np.isnan(values)]
        assert estimates[name].value == pytest.approx(plain(CASES), abs=1e-6)
        if len(defined) < 36:
            assert estimates[name].interval is None
            assert estimates[name].reason == f"too few resamples are defined: {METRICS[name].undefined}"
            continue
        np.testing.assert_allclose(estimates[name].interval, np.quantile(defined, [0.025, 0.975]), atol=1e-6)
        assert estimates[name].reason is None
        checked += 1
    assert checked > 15


def test_patients_are_drawn_not_cases():
    """Two scans of a patient move together: cases given twice change no interval, patients given twice do."""
    rng = np.random.default_rng(0)
    scans = [(rng.normal(size=30), rng.random(30) < 0.3) for _ in range(6)]
    once, twice, apart = (AnomalyEvaluation(settings=VOXELS) for _ in range(3))
    for index, scan in enumerate(scans):
        add_scores(once, f"p{index}", *scan)
        for visit in "ab":
            add_scores(twice, f"p{index}{visit}", *scan, patient_id=f"p{index}")
            add_scores(apart, f"p{index}{visit}", *scan)
    intervals = [each.estimates("model")["pixel_auroc"].interval for each in (once, twice, apart)]
    np.testing.assert_allclose(intervals[1], intervals[0], rtol=1e-6)
    widths = np.diff(intervals).ravel()
    assert widths[2] < 0.9 * widths[0]


@pytest.mark.process
def test_an_interval_covers_the_truth():
    """Of 100 samples of 25 patients about 95 % of the intervals hold the AUROC of the population, Φ(1 / √2)."""
    truth = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2)))
    covered, above = 0, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        settings = EvaluationSettings(top_k=1, resamples=200, seed=seed)
        evaluation = AnomalyEvaluation(settings=settings)
        for patient in range(25):
            labels = np.arange(20) < 8
            add_scores(evaluation, str(patient), rng.normal(labels), labels)
        values = METRICS["pixel_auroc"].values(evaluation.pooled["model"], evaluation._weights)
        low, high = evaluation._estimate(values, "").interval
        covered += low <= truth <= high
        above += low > truth
    assert 89 <= covered <= 99
    assert 1 <= above <= 8


@pytest.mark.parametrize("patients", [None, ["p", "p"]])
def test_one_patient_has_no_interval(patients):
    cases = CASES[: 1 if patients is None else 2]
    for estimate in two_methods(cases, patients).estimates("model").values():
        assert estimate.interval is None
        assert estimate.value is None or estimate.reason == "an interval needs two patients"
        assert estimate.value is not None or estimate.reason.startswith("needs")


def test_too_few_resamples_with_a_lesion():
    """One of four patients has a lesion, so that a third of the resamples has none."""
    evaluation = AnomalyEvaluation(settings=VOXELS)
    for index in range(4):
        add_scores(evaluation, str(index), np.arange(6.0), np.arange(6) == (4 if index == 2 else 9))
    estimate = evaluation.estimates("model")["pixel_auroc"]
    assert estimate.value == pytest.approx(auroc_of(np.tile(np.arange(6), 4), np.arange(24) == 4))
    assert estimate.interval is None
    assert estimate.reason == "too few resamples are defined: needs voxels with and without lesions"


def test_the_same_seed_gives_the_same_intervals():
    first, again = (two_methods(CASES).estimates("model") for _ in range(2))
    other = two_methods(CASES, settings=EvaluationSettings(**{**vars(SMALL), "seed": 1})).estimates("model")
    assert first == again
    assert {name: each.value for name, each in first.items()} == {name: each.value for name, each in other.items()}
    assert first["pixel_auroc"].interval != other["pixel_auroc"].interval


def test_the_order_of_the_cases_does_not_matter():
    expected = two_methods(CASES)
    evaluation = AnomalyEvaluation(expected.thresholds, SMALL)
    for index in (3, 0, 5, 4, 1, 2):
        case = CASES[index]
        maps = {"model": case.anomaly_map, "baseline": np.flip(case.anomaly_map, 0) + case.label}
        evaluation.add(f"case {index}", maps, case.label, case.brain, affine=case.affine)
    for method in NAMES:
        for name, estimate in evaluation.estimates(method).items():
            other = expected.estimates(method)[name]
            assert estimate.value == pytest.approx(other.value, rel=1e-6)
            assert estimate.interval == pytest.approx(other.interval, rel=1e-6)
            assert estimate.reason == other.reason


def test_number_of_resamples():
    settings = EvaluationSettings(**{**vars(SMALL), "resamples": 7})
    evaluation = two_methods(CASES, settings=settings)
    values = evaluation.resampled["model"]["pixel_auroc"]
    assert values.shape == (8,)
    assert values[0] == evaluation.value("model", "pixel_auroc")


def test_some_metrics():
    some = two_methods(CASES, metrics=["pixel_auroc", "slice_auroc"])
    everything = two_methods(CASES).estimates("model")
    assert some.estimates("model") == {name: everything[name] for name in ("pixel_auroc", "slice_auroc")}
    assert list(some.differences("model", "baseline")) == ["pixel_auroc", "slice_auroc"]
    assert some.value("model", "slice_average_precision") > 0
    with pytest.raises(KeyError, match="typo"):
        AnomalyEvaluation(metrics=["typo"])


# ---------------------------------------------------------------------------------------------------------- differences


def test_a_method_minus_itself_is_0():
    for name, estimate in two_methods(CASES).differences("model", "model").items():
        assert estimate.value == 0, name
        if estimate.interval is not None:
            assert estimate.interval == (0, 0)


def test_differences_are_paired():
    """Both methods see the same draws: a shift between them has no spread, though each has."""
    rng = np.random.default_rng(0)
    evaluation = AnomalyEvaluation({"model": 0.5, "worse": 0.5}, VOXELS)
    for index in range(8):
        labels, scores = np.arange(20) < 3 + index, rng.normal(size=20)
        flagged = np.where(np.arange(20) < 2 + index, 1.0, 0) * (scores > -9)
        fewer = flagged.copy()
        fewer[0] = 0  # one voxel of 1 mm³ fewer in every case
        maps = {"model": flagged[None, None], "worse": fewer[None, None]}
        evaluation.add(str(index), maps, labels[None, None])
    differences = evaluation.differences("model", "worse")["lesion_volume_bias"]
    assert differences.value == pytest.approx(0.001)
    assert differences.interval == pytest.approx((0.001, 0.001))


@pytest.mark.parametrize("name", ["pixel_auroc", "froc_score", "slice_auroc_macro"])
def test_differences_against_the_resamples_of_both(name):
    evaluation = two_methods(CASES)
    drawn = np.concatenate([np.ones((1, 6)), drawn_patients(6, SMALL.resamples)])
    first, second = (METRICS[name].values(evaluation.pooled[method], drawn) for method in NAMES)
    values = (first - second)[1:]
    estimate = evaluation.differences("model", "baseline")[name]
    assert estimate.value == pytest.approx(first[0] - second[0])
    np.testing.assert_allclose(estimate.interval, np.nanquantile(values, [0.025, 0.975]))
    opposite = evaluation.differences("baseline", "model")[name]
    assert opposite.value == -estimate.value
    np.testing.assert_allclose(opposite.interval, [-estimate.interval[1], -estimate.interval[0]])


@pytest.mark.parametrize("has_threshold", NAMES)
def test_differences_where_one_is_not_defined(has_threshold):
    evaluation = two_methods(CASES, thresholds={has_threshold: 0.5})
    estimate = evaluation.differences(*NAMES)["dice_at_threshold"]
    assert (estimate.value, estimate.interval, estimate.reason) == (None, None, "no label-free threshold was given")
    assert evaluation.differences(*NAMES)["pixel_auroc"].value is not None


# --------------------------------------------------------------------------------------------------------------- inputs


def test_methods_and_cases():
    evaluation = two_methods(CASES)
    assert evaluation.methods == list(NAMES)
    assert [case.case_id for case in evaluation.cases] == [f"case {index}" for index in range(6)]
    assert evaluation.cases[0].patient_id == "case 0"
    assert evaluation.cases is evaluation.statistics["model"]
    assert AnomalyEvaluation().methods == AnomalyEvaluation().cases == []


def test_each_method_has_its_own_threshold():
    evaluation = two_methods(CASES, thresholds={"model": LabelFreeThreshold(0.5, 0.01, "cases"), "baseline": 0.3})
    assert evaluation.thresholds["baseline"] == LabelFreeThreshold(0.3, None, "given")
    for method, threshold in (("model", 0.5), ("baseline", 0.3)):
        assert {case.flagged.threshold for case in evaluation.statistics[method]} == {threshold}
        alone = AnomalyEvaluation({method: threshold}, SMALL)
        for case_id, case in enumerate(CASES):
            maps = {"model": case.anomaly_map, "baseline": np.flip(case.anomaly_map, 0) + case.label}
            alone.add(str(case_id), {method: maps[method]}, case.label, case.brain, affine=case.affine)
        for name in METRICS:
            assert alone.value(method, name) == evaluation.value(method, name)


def test_metrics_follow_added_cases():
    """Tables that were made for the cases so far do not stay."""
    evaluation = AnomalyEvaluation({"model": 0.5, "baseline": 0.3}, SMALL)
    for index, case in enumerate(CASES):
        maps = {"model": case.anomaly_map, "baseline": np.flip(case.anomaly_map, 0) + case.label}
        evaluation.add(f"case {index}", maps, case.label, case.brain, affine=case.affine)
        expected = two_methods(CASES[: index + 1])
        assert evaluation.estimates("baseline") == expected.estimates("baseline")
        np.testing.assert_array_equal(
            evaluation.per_case("model", "pixel_auroc"), expected.per_case("model", "pixel_auroc")
        )


@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array[None],
        torch.from_numpy,
        lambda array: torch.from_numpy(array)[None],
        lambda array: torch.from_numpy(array)[None].requires_grad_(array.dtype == np.float32),
        lambda array: MetaTensor(torch.from_numpy(array)[None], affine=torch.diag(torch.tensor([2.0, 1, 3, 1]))),
        lambda array: np.asfortranarray(array),
    ],
    ids=["channel", "tensor", "tensor with channel", "with gradient", "meta tensor", "Fortran order"],
)
def test_arrays_of_many_kinds(convert):
    case = CASES[0]
    arrays = [case.anomaly_map, case.label.astype(np.uint8), case.brain.astype(np.uint8)]
    evaluation, expected = AnomalyEvaluation({"model": 0.5}, SMALL), AnomalyEvaluation({"model": 0.5}, SMALL)
    anomaly_map, label, brain = map(convert, arrays)
    evaluation.add("case", {"model": anomaly_map}, label, brain, image=anomaly_map, lesion_free=brain)
    affine = np.diag([2, 1, 3, 1]) if isinstance(label, MetaTensor) else None
    expected.add("case", {"model": arrays[0]}, *arrays[1:], image=arrays[0], lesion_free=arrays[2], affine=affine)
    assert state(evaluation) == state(expected)


@pytest.mark.parametrize("slice_score", ["top_k_mean", "max", "filtered_max", "mean"])
@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float64, np.uint8, np.int16, np.int64, torch.float16, torch.bfloat16, torch.uint8, torch.int16],
)
def test_types_of_the_map(dtype, slice_score):
    """Raw intensities are whole numbers; their means are not."""
    case = make_case(0, shape=(30, 30, 5))
    scores = np.round(50 + 40 * np.clip(case.anomaly_map, -1, 1))
    expected, evaluation = (
        AnomalyEvaluation({"model": 60}, EvaluationSettings(slice_score=slice_score, min_lesion_size=3))
        for _ in range(2)
    )
    expected.add("case", {"model": scores.astype(np.float32)}, case.label, case.brain)
    converted = torch.from_numpy(scores).to(dtype) if isinstance(dtype, torch.dtype) else scores.astype(dtype)
    evaluation.add("case", {"model": converted}, case.label, case.brain)
    np.testing.assert_allclose(evaluation.cases[0].slices["score"], expected.cases[0].slices["score"], rtol=1e-5)
    for name in METRICS:
        assert evaluation.value("model", name) == pytest.approx(expected.value("model", name), rel=1e-5, nan_ok=True)


def test_scores_of_any_range():
    """Figures that need no threshold do not change with location and scale."""
    evaluation = AnomalyEvaluation(settings=SMALL)
    for index, case in enumerate(CASES):
        scores = case.anomaly_map.astype(np.float64)
        maps = {"a": scores, "b": 2**-20 * scores, "c": 2**17 * (scores + 1)}  # exact, so that ties remain
        evaluation.add(str(index), maps, case.label, case.brain, affine=case.affine)
    for name, metric in METRICS.items():
        if not metric.needs_threshold:
            values = [evaluation.value(method, name) for method in "abc"]
            assert values == pytest.approx([PLAIN_METRICS[name](CASES)] * 3, abs=1e-6)


def test_infinite_scores():
    case = CASES[0]
    scores = case.anomaly_map.copy()
    scores[scores > 1] = np.inf
    scores[scores < -0.5] = -np.inf
    evaluation = AnomalyEvaluation({"model": 0.5}, EvaluationSettings(**{**vars(SMALL), "slice_score": "max"}))
    evaluation.add("case", {"model": scores}, case.label, case.brain)
    replaced = np.clip(scores, -1e3, 1e3)
    evaluation.value("model", "pixel_auroc")
    other = AnomalyEvaluation({"model": 0.5}, evaluation.settings)
    other.add("case", {"model": replaced}, case.label, case.brain)
    for name in METRICS:
        assert evaluation.value("model", name) == pytest.approx(other.value("model", name), nan_ok=True), name


@pytest.mark.parametrize("name", ["label", "brain", "image", "lesion_free", "affine"])
def test_methods_of_any_name(name):
    """A method's map is its map, though the method be named like an argument: ``image`` for raw intensities."""
    evaluations = [AnomalyEvaluation({method: 0.5}, SMALL) for method in (name, "model")]
    for method, evaluation in zip((name, "model"), evaluations, strict=True):
        for index, case in enumerate(CASES):
            options = {"image": case.anomaly_map - 1, "lesion_free": case.brain, "affine": case.affine}
            evaluation.add(str(index), {method: case.anomaly_map}, case.label, case.brain, **options)
    assert evaluations[0].estimates(name) == evaluations[1].estimates("model")


def test_the_maps_are_not_changed():
    case = CASES[0]
    arrays = [case.anomaly_map, case.label, case.brain, case.anomaly_map + 1]
    copies = [array.copy() for array in arrays]
    evaluation = AnomalyEvaluation({"model": 0.5}, EvaluationSettings(slice_score="filtered_max"))
    evaluation.add("case", {"model": arrays[0]}, *arrays[1:3], image=arrays[3], affine=np.diag([-1, 1, 1, 1]))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    views = pickle.dumps(evaluation.views)
    for array in arrays:
        array[...] = 0  # what was counted stays as it was
    assert pickle.dumps(evaluation.views) == views
    for array, copy in zip(arrays, copies, strict=True):
        array[...] = copy


# --------------------------------------------------------------------------------------------------------------- errors

GOOD = CASES[4]
MAPS = {"model": GOOD.anomaly_map, "baseline": GOOD.anomaly_map}
NAN_IN_BRAIN = GOOD.anomaly_map.copy()
NAN_IN_BRAIN[tuple(np.argwhere(GOOD.inside)[5])] = np.nan


def with_affine(array, affine):
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(np.asarray(affine, dtype=float)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"case_id": "first"}, "first: the case was added before"),
        ({"anomaly_maps": {"model": GOOD.anomaly_map}}, "expected maps of model, baseline, got model"),
        ({"anomaly_maps": {**MAPS, "third": GOOD.label}}, "expected maps of model, baseline, got .*third"),
        ({"anomaly_maps": {}}, "expected maps of model, baseline"),
        ({"label": GOOD.label[1:]}, r"shapes differ: label \(8, 8, 14\), map of model \(9, 8, 14\)"),
        ({"brain": GOOD.brain[..., :-1]}, r"shapes differ.*brain \(9, 8, 13\)"),
        ({"image": GOOD.label[:, 1:]}, r"shapes differ.*image \(9, 7, 14\)"),
        ({"lesion_free": GOOD.label[None, None]}, r"shapes differ.*lesion_free \(1, 1, 9, 8, 14\)"),
        ({"anomaly_maps": {**MAPS, "baseline": GOOD.label[1:]}}, r"shapes differ.*baseline \(8, 8, 14\)"),
        ({"anomaly_maps": {**MAPS, "baseline": NAN_IN_BRAIN}}, "baseline.*NaN"),
        ({"anomaly_maps": {**MAPS, "model": NAN_IN_BRAIN}}, "model.*NaN"),
        ({"label": np.zeros((9, 8, 14)), "brain": np.zeros((9, 8, 14))}, "the brain is empty"),
        ({"label": -GOOD.label.astype(int)}, "label.* negative"),
        ({"label": GOOD.label * 0.5}, "label.* not whole"),
        ({"label": np.where(GOOD.label, 1, np.nan)}, "label.* not whole"),
        (
            {"anomaly_maps": {name: array[0] for name, array in MAPS.items()}, "label": GOOD.label[0], "brain": None},
            r"expected arrays of shape \(height, width, depth\), got \(8, 14\)",
        ),
        (
            {"label": with_affine(GOOD.label, np.eye(4)), "brain": with_affine(GOOD.brain, np.diag([1, 1, 2, 1]))},
            "the affine of brain differs from that of label by 13 mm",
        ),
        (
            {"label": with_affine(GOOD.label, np.eye(4)), "affine": np.diag([1, 1.25, 1, 1])},
            "the affine of affine differs from that of label by 1.75 mm",
        ),
        ({"affine": np.zeros((4, 4))}, ""),
        ({"affine": np.full((4, 4), np.nan)}, ""),
        ({"affine": np.eye(3)}, r"affine of shape \(4, 4\)"),
    ],
    ids=[
        *("twice", "a method less", "a method more", "no method", "label", "brain", "image", "lesion_free", "map"),
        *(
            "NaN in the second",
            "NaN in the first",
            "empty brain",
            "negative label",
            "half a label",
            "NaN label",
            "2D",
            "affines",
            "affine and meta",
            "singular affine",
        ),
        *("NaN affine", "3 x 3 affine"),
    ],
)
def test_errors_name_the_case_and_leave_no_trace(changes, message):
    evaluation = AnomalyEvaluation({"model": 0.5, "baseline": 0.5}, SMALL)
    good = {"anomaly_maps": MAPS, "label": GOOD.label, "brain": GOOD.brain}
    evaluation.add("first", **good)
    before, estimates = state(evaluation), evaluation.estimates("model")
    arguments = {"case_id": "second", **good, **changes}
    with pytest.raises(ValueError, match=f"^{arguments['case_id']}: .*{message.removeprefix('first: ')}"):
        evaluation.add(**arguments)
    assert state(evaluation) == before
    assert evaluation.estimates("model") == estimates
    evaluation.add("second", **good)  # the name is still free
    assert len(evaluation.cases) == len(evaluation.statistics["baseline"]) == 2
    assert len(evaluation.views) == 4


def test_an_error_of_any_kind_leaves_no_trace():
    """Not only what is known to go wrong: a picture of a type that cannot be shown."""
    evaluation = AnomalyEvaluation(settings=SMALL)
    for image in (GOOD.lesion, GOOD.label.astype(object)):
        try:
            evaluation.add("case", MAPS, GOOD.label, GOOD.brain, image=image)
        except Exception:
            assert not evaluation.cases
            assert not evaluation.statistics
            assert not evaluation.views
        else:
            assert len(evaluation.views) == 2
            evaluation = AnomalyEvaluation(settings=SMALL)


def test_nan_outside_the_brain_is_not_looked_at():
    evaluation = AnomalyEvaluation({"model": 0.5}, SMALL)
    scores = np.where(GOOD.inside, GOOD.anomaly_map, np.nan)
    evaluation.add("case 0", {"model": scores}, GOOD.label, GOOD.brain, affine=GOOD.affine)
    expected = evaluate([GOOD])
    for name in METRICS:
        assert evaluation.value("model", name) == pytest.approx(expected.value("model", name), nan_ok=True)


def test_affines_that_differ_by_rounding():
    evaluation = AnomalyEvaluation(settings=SMALL)
    label, brain = (
        with_affine(array, np.eye(4) * (1 + error)) for array, error in ((GOOD.label, 0), (GOOD.brain, 5e-4))
    )
    evaluation.add("case", {"model": GOOD.anomaly_map}, label, brain, affine=np.eye(4))
    assert evaluation.cases[0].voxel_volume == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("error", [3e-8, -3e-8])
def test_labels_up_to_rounding(error):
    """Scaled and resampled files hold 0.99999997 for 1, and 0.00000003 for 0: these are whole, so 0 is no lesion."""
    evaluation = AnomalyEvaluation({"model": 0.5}, SMALL)
    evaluation.add("case", {"model": GOOD.anomaly_map}, GOOD.label + error, GOOD.brain)
    assert evaluation.cases[0].lesion.total == GOOD.lesion.sum()


def test_thresholds_of_unknown_methods():
    evaluation = AnomalyEvaluation({"model": 0.5, "modle": 0.5}, SMALL)
    with pytest.raises(ValueError, match=r"^case: .*modle"):
        evaluation.add("case", {"model": GOOD.anomaly_map}, GOOD.label, GOOD.brain)


def test_failed_cases():
    evaluation = evaluate(CASES[:1])
    evaluation.fail("case 7", "no image")
    assert evaluation.failed == {"case 7": "no image"}
    assert len(evaluation.cases) == 1


def test_unknown_names():
    evaluation = evaluate(CASES[:1])
    for method, name in (("other", "pixel_auroc"), ("model", "other")):
        with pytest.raises(KeyError, match="other"):
            evaluation.value(method, name)
        with pytest.raises(KeyError, match="other"):
            evaluation.per_case(method, name)


# ------------------------------------------------------------------------------------------------- thresholds and views


def test_label_free_thresholds():
    """Of the voxels of all regions, a share at most is flagged afterwards."""
    evaluation = AnomalyEvaluation(settings=SMALL)
    scores = {"model": [], "baseline": []}
    for index, case in enumerate(CASES):
        maps = {"model": case.anomaly_map, "baseline": np.flip(case.anomaly_map, 1) * 100}
        region = None if index == 1 else case.brain[..., ::-1]
        evaluation.add(str(index), maps, case.label, case.brain, lesion_free=region)
        if region is not None:
            for name, scores_of in scores.items():
                scores_of.append(maps[name][region & case.inside & ~case.lesion])
    for rate in (0.01, 0.2):
        thresholds = evaluation.label_free_thresholds(rate)
        assert list(thresholds) == ["model", "baseline"]
        for name, threshold in thresholds.items():
            joined = np.concatenate(scores[name])
            assert (joined >= threshold.value).mean() <= rate
            assert (joined >= joined[joined < threshold.value].max()).mean() > rate
            assert threshold.source == f"{len(joined)} voxels in lesion-free regions of 5 cases"
            assert threshold.false_positive_rate == rate
    assert evaluation.label_free_thresholds() == evaluation.label_free_thresholds(0.01)


def test_label_free_thresholds_without_regions():
    with pytest.raises(ValueError, match="no lesion-free region"):
        evaluate(CASES).label_free_thresholds()
    with pytest.raises(ValueError, match="false_positive_rate"):
        evaluate(CASES).label_free_thresholds(2)


def test_views_are_of_the_first_method():
    evaluation = two_methods(CASES)
    assert [(view.case_id, view.kind) for view in evaluation.views] == [
        (f"case {index}", kind)
        for index, case in enumerate(CASES)
        for kind in (["lesion"] if case.lesion.any() else []) + ["false_alarm"] * has_free_slice(case)
    ]
    assert {view.method for view in evaluation.views} == {"model"}
    first = evaluation.views[0]
    expected, inside = (array[::-1, ::-1, first.slice] for array in (CASES[0].lesion, CASES[0].inside))
    assert first.plane.label[first.plane.brain].tolist() == expected[inside].tolist()


def has_free_slice(case):
    counts = case.inside.sum(axis=(0, 1)) >= SMALL.top_k
    return bool((counts & ~case.lesion.any(axis=(0, 1))).any())


# ------------------------------------------------------------------------------------------------------------ processes


def test_pickled():
    """Statistics, views and thresholds can be sent; metrics from them are the same."""
    evaluation = two_methods(CASES)
    expected = evaluation.estimates("model")
    copy = pickle.loads(pickle.dumps(evaluation))
    assert copy.estimates("model") == expected
    assert copy.thresholds == evaluation.thresholds


def test_gathering_in_one_process():
    evaluation = two_methods(CASES)
    assert evaluation.gather() is evaluation


def share_of(rank, cases=CASES, order=NAMES):
    """Cases 4, 0, 1 and 2 on one process, 3, 5 and again 2 on the other; each fails on one."""
    evaluation = AnomalyEvaluation({"model": 0.5, "baseline": 0.3}, SMALL)
    for index in [[4, 0, 1, 2], [3, 5, 2]][rank]:
        case = cases[index]
        maps = {"model": case.anomaly_map, "baseline": np.flip(case.anomaly_map, 0) + case.label}
        maps = {name: maps[name] for name in order}
        evaluation.add(
            *(f"case {index}", maps, case.label, case.brain), patient_id=f"patient {index % 4}", affine=case.affine
        )
    evaluation.fail(f"broken {rank}", "no image")
    return evaluation


def gathered(rank):
    """What three evaluations become: shared, of one process only, and of different methods."""
    joined = share_of(rank).gather()
    empty = AnomalyEvaluation({"model": 0.5, "baseline": 0.3}, SMALL)
    of_one = (empty if rank else share_of(0)).gather()
    nothing = AnomalyEvaluation(settings=SMALL).gather()
    try:
        other = AnomalyEvaluation(settings=SMALL)
        other.add("case", {f"model {rank}": CASES[0].anomaly_map}, CASES[0].label)
        other.gather()
        error = ""
    except ValueError as raised:
        error = str(raised)
    return joined, of_one, nothing.cases, error


@pytest.mark.process
def test_cases_of_two_processes(of_processes):
    """The case that both had counts once; the metrics are those of one process, in each."""
    expected = two_methods(CASES, [f"patient {index % 4}" for index in range(6)])
    for joined, *_ in of_processes[0]:
        assert joined.methods == list(NAMES)
        for method in NAMES:
            assert [case.case_id for case in joined.statistics[method]] == [f"case {index}" for index in range(6)]
            assert joined.estimates(method) == expected.estimates(method)
        assert joined.differences(*NAMES) == expected.differences(*NAMES)
        assert joined.failed == {"broken 0": "no image", "broken 1": "no image"}
        views = {(view.case_id, view.kind): view for view in joined.views}
        assert len(views) == len(joined.views) == len(expected.views)
        for view in expected.views:
            assert pickle.dumps(views[view.case_id, view.kind].plane) == pickle.dumps(view.plane)
        assert joined.thresholds == expected.thresholds
        assert joined.settings == SMALL


@pytest.mark.process
def test_a_process_without_cases(of_processes):
    expected = share_of(0)
    for _, of_one, nothing, _ in of_processes[0]:
        assert [case.case_id for case in of_one.cases] == ["case 0", "case 1", "case 2", "case 4"]
        for name in METRICS:
            assert of_one.value("model", name) == pytest.approx(expected.value("model", name))
        assert nothing == []


@pytest.mark.process
def test_processes_of_different_methods(of_processes):
    for *_, error in of_processes[0]:
        assert "different methods" in error
        assert "model 0" in error
        assert "model 1" in error


# ---------------------------------------------------------------------------------------------------------------- names


def test_names_that_there_are_not():
    evaluation = two_methods(CASES)
    listed = r"There is no metric 'auc', only slice_auroc, slice_average_precision, "
    for ask in (
        lambda: evaluation.estimates("model")["auc"],
        lambda: evaluation.differences("model", "baseline")["auc"],
        lambda: evaluation.value("model", "auc"),
        lambda: evaluation.per_case("model", "auc"),
        lambda: METRICS["auc"],
    ):
        with pytest.raises(KeyError, match=listed):
            ask()
    for ask in (evaluation.estimates, lambda name: evaluation.value(name, "pixel_auroc")):
        with pytest.raises(KeyError, match="There is no method 'ours', only model, baseline"):
            ask("ours")
