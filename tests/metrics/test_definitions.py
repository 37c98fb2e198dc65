"""Every metric against a plain one from the voxels, over all cases, for each, and with cases that count repeatedly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_checks import (
    CASES,
    PLAIN_METRICS,
    SMALL,
    THRESHOLD,
    Case,
    add_scores,
    evaluate,
    plain_aupro,
    plain_dice,
    slices,
    volumes,
    voxels,
)
from scipy.integrate import trapezoid

from ssmctb_monai.metrics import METRICS, AnomalyEvaluation, EvaluationSettings
from ssmctb_monai.metrics.definitions import AUPRO_LIMIT, FROC_PLACES
from ssmctb_monai.metrics.pooled_cases import POSITION_TOLERANCE

EVALUATION = evaluate(CASES)
POOLED = EVALUATION.pooled["model"]
ALONE = [evaluate([case]) for case in CASES]
FOUR = evaluate([CASES[0], CASES[1], CASES[2], CASES[4]])
AT_THRESHOLD = {
    *("slice_false_alarm_share", "dice_at_threshold", "dice_at_threshold_per_case", "lesion_sensitivity"),
    *("false_positives_per_volume", "froc_score", "rbdc", "tbdc", "lesion_volume_bias", "lesion_volume_correlation"),
}


def one_voxel_slices(**keywords):
    return AnomalyEvaluation({"model": 0.5}, EvaluationSettings(top_k=1, min_lesion_size=1, **keywords))


# ----------------------------------------------------------------------------------------------- against plain metrics


def test_every_metric_has_a_plain_one():
    assert set(PLAIN_METRICS) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_over_all_cases(name):
    value = EVALUATION.value("model", name)
    assert value == pytest.approx(PLAIN_METRICS[name](CASES), abs=1e-6)
    assert not math.isnan(value)
    if METRICS[name].unit is None:
        assert 0 < value < 1


@pytest.mark.parametrize("name", METRICS)
def test_of_each_case(name):
    values = EVALUATION.per_case("model", name)
    expected = [PLAIN_METRICS[name]([case]) for case in CASES]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    alone = [evaluation.value("model", name) for evaluation in ALONE]
    np.testing.assert_allclose(values, alone, atol=1e-6)


def assert_repeated(weights):
    """Weights count a case as often as it would count if it were there repeatedly."""
    cases = [case for case, times in zip(CASES, weights, strict=True) for _ in range(times)]
    for name, metric in METRICS.items():
        value = metric.values(POOLED, np.array([weights]))[0]
        assert value == pytest.approx(PLAIN_METRICS[name](cases), abs=1e-6, nan_ok=True), name


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=len(CASES), max_size=len(CASES)).filter(any))
def test_cases_that_count_repeatedly(weights):
    assert_repeated(weights)


@pytest.mark.parametrize("weights", [[0, 0, 1, 0, 0, 2], [1, 0, 0, 0, 0, 0], [0, 0, 2, 0, 1, 0], [3, 0, 0, 0, 1, 0]])
def test_few_cases_that_count(weights):
    """The third and the sixth have no lesion."""
    assert not CASES[2].lesion.any()
    assert not CASES[5].lesion.any()
    assert_repeated(weights)


@pytest.mark.parametrize("name", METRICS)
def test_many_sets_row_by_row(name):
    weights = np.random.default_rng(0).integers(0, 3, (40, len(CASES)))
    weights[:, 0] += 1
    together = METRICS[name].values(POOLED, weights)
    assert together.shape == (40,)
    np.testing.assert_allclose(together, [METRICS[name].values(POOLED, row[None])[0] for row in weights], rtol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_a_case_that_counts_not_is_as_if_it_were_not_there(name):
    value = METRICS[name].values(POOLED, np.array([[1, 1, 1, 0, 1, 0]]))[0]
    assert value == pytest.approx(FOUR.value("model", name), abs=1e-6)


def test_doubled_cases_as_cases():
    """The same with cases that are really there twice."""
    doubled = evaluate([*CASES, CASES[0], CASES[3], CASES[3]])
    for name, metric in METRICS.items():
        assert metric.values(POOLED, np.array([[2, 1, 1, 3, 1, 1]]))[0] == pytest.approx(
            doubled.value("model", name), abs=1e-6
        )


# -------------------------------------------------------------------------------------------------- position, by hand


def test_position_matched_by_hand():
    """Ten slices. Lesions at places 0 (scores 3), 1 (2) and 2 (5) over two cases and a third without."""
    evaluation = one_voxel_slices()
    far = [9.0] * 7  # lesion-free and higher than all, but elsewhere
    add_scores(evaluation, "a", np.array([3.0, 1.0, 5.0, *far]), np.array([1, 0, 1] + [0] * 7))
    add_scores(evaluation, "b", np.array([2.0, 2.0, 4.0, *far]), np.array([0, 1, 1] + [0] * 7))
    add_scores(evaluation, "c", np.array([3.0, 2.0, 4.0, *far]), np.zeros(10))
    # place 0: 3 against 2, 3; place 1: 2 against 1, 2; place 2: 5 and 4 against 4
    expected = (0.75 + 0.75 + 1 + 0.5) / 4
    assert evaluation.value("model", "slice_auroc_position_matched") == pytest.approx(expected)
    assert evaluation.value("model", "slice_auroc") < 0.2


def test_position_without_lesion_free_slices():
    """Lesion slices without a partner at their height do not count; without any there is no metric."""
    evaluation = one_voxel_slices()
    add_scores(evaluation, "a", np.arange(10.0), np.array([0] * 5 + [1] * 5))
    assert math.isnan(evaluation.value("model", "slice_auroc_position_matched"))
    add_scores(evaluation, "b", np.array([0.0] * 9 + [20]), np.array([1] * 9 + [0]))
    # below 5: 0 against 0, 1, 2, 3, 4; at the top: 9 against 20
    assert evaluation.value("model", "slice_auroc_position_matched") == pytest.approx((0.5 + 0 * 4 + 0) / 6)
    assert evaluation.value("model", "slice_position_matched_share") == pytest.approx(6 / 14)


@pytest.mark.parametrize("depth", [20, 60, 150])
def test_a_score_of_the_height_alone(depth):
    """Lesions crowd in the middle. Plain AUROC is high, matched it is nearly that of a guess."""
    evaluation = one_voxel_slices()
    rng = np.random.default_rng(0)
    for index in range(12):
        height = np.linspace(0, 1, depth + rng.integers(depth // 5))
        labels = rng.random(len(height)) < np.exp(-(((height - 0.6) / 0.2) ** 2))
        add_scores(evaluation, f"case {index}", -np.abs(height - 0.6), labels)
    assert evaluation.value("model", "slice_auroc") > 0.8
    assert evaluation.value("model", "slice_auroc_position_matched") == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("depth", "near"), [(2, 0), (10, 0), (100, 0), (155, 0), (201, 1), (400, 1), (401, 2)])
def test_slices_at_the_same_height(depth, near):
    """Slice i of n lies at i / (n - 1); up to 0.005 to either side is the same height."""
    assert POSITION_TOLERANCE == 0.005
    evaluation = one_voxel_slices()
    add_scores(evaluation, "normal", np.zeros(depth), np.zeros(depth))
    add_scores(evaluation, "lesion", np.ones(depth), np.ones(depth))
    owner, partners, won = evaluation.pooled["model"].height_matches
    assert owner.tolist() == [1] * depth
    expected = [min(index, near) + 1 + min(depth - 1 - index, near) for index in range(depth)]
    np.testing.assert_array_equal(partners, np.transpose([expected, [0] * depth]))
    np.testing.assert_array_equal(won, partners)


def test_half_a_slice_is_the_same_height():
    """Brains of 11 and 17 slices: at tenths, each with those of the sixteenths that are within a twentieth."""
    evaluation = one_voxel_slices()
    add_scores(evaluation, "normal", np.zeros(17), np.zeros(17))
    add_scores(evaluation, "lesion", np.ones(11), np.ones(11))
    _, partners, _ = evaluation.pooled["model"].height_matches
    assert partners[:, 0].tolist() == [sum(abs(8 * i - 5 * j) <= 4 for j in range(17)) for i in range(11)]


# ------------------------------------------------------------------------------------------------- slices and volumes


def test_slices_of_the_paper():
    """With all slices, those without brain score lowest, and count as slices without a lesion."""
    brain, far = np.array([0, 0, 1, 1, 1, 1, 0, 0]), EvaluationSettings(top_k=1, slices="all", min_lesion_size=1)
    scores, labels = np.array([9.0, 9, 4, 5, 3, 6, 9, 9]), np.array([0, 0, 0, 0, 1, 1, 0, 0])
    values = {}
    for counted in (far, EvaluationSettings(top_k=1, min_lesion_size=1)):
        evaluation = AnomalyEvaluation({"model": 5}, counted)
        add_scores(evaluation, "case", scores, labels, brain=brain[None, None])
        values[counted.slices] = [
            evaluation.value("model", name)
            for name in ("slice_auroc", "slice_false_alarm_share", "slice_auroc_position_matched", "volume_auroc")
        ]
    # 3 and 6 against 4, 5: two of four pairs; against four slices without brain they win all of eight
    np.testing.assert_allclose(values["brain"], [2 / 4, 1 / 2, np.nan, np.nan])
    np.testing.assert_allclose(values["all"], [10 / 12, 1 / 6, np.nan, np.nan])


@pytest.mark.parametrize(
    ("count", "depth", "expected"),
    [(7, 3, [4, 3]), (8, 3, [4, 4]), (9, 3, [3, 3, 3]), (2, 3, [2]), (6, 1, [1] * 6), (5, 2, [3, 2])],
)
def test_slabs_of_at_least_a_depth(count, depth, expected):
    evaluation = one_voxel_slices(slab_depth=depth)
    add_scores(evaluation, "case", np.arange(count, dtype=float), np.zeros(count))
    table = evaluation.pooled["model"].slabs
    assert table.edges.tolist() == (np.cumsum(expected) - 1).tolist()  # the highest slice of each
    assert table.normal.sum() == len(expected)


def test_slabs_by_hand():
    evaluation = one_voxel_slices(slab_depth=2)
    add_scores(evaluation, "a", np.array([1.0, 4, 3, 2, 6, 0]), np.array([0, 0, 0, 1, 0, 0]))
    add_scores(evaluation, "b", np.array([2.0, 5, 1, 1]), np.array([1, 1, 0, 0]))
    # slabs 4, 3 (lesion), 6, 5 (lesion), 1
    assert evaluation.value("model", "slab_auroc") == pytest.approx((1 + 2) / 6)
    assert evaluation.value("model", "slab_average_precision") == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_volumes_by_hand():
    evaluation = one_voxel_slices()
    for index, (score, has_lesion) in enumerate([(4, 1), (3, 0), (2, 1), (2, 0), (1, 0)]):
        add_scores(evaluation, str(index), np.array([0.0, score]), np.array([has_lesion, 0]))
    assert evaluation.value("model", "volume_auroc") == pytest.approx((3 + 1.5) / 6)
    assert evaluation.value("model", "volume_average_precision") == pytest.approx((1 + 2 / 4) / 2)
    assert np.isnan(evaluation.per_case("model", "volume_auroc")).all()
    assert np.isnan(evaluation.per_case("model", "volume_average_precision")).all()


def test_volume_bias_and_correlation_by_hand():
    """Flagged and true voxels 3 and 2, 1 and 1, 5 and 2, of 1, 8 and 2 mm³."""
    evaluation = one_voxel_slices()
    for index, (flagged, true, size) in enumerate([(3, 2, 1), (1, 1, 8), (5, 2, 2)]):
        scores, labels = (np.arange(8) < number for number in (flagged, true))
        add_scores(evaluation, str(index), scores.astype(float), labels, affine=np.diag([1, 1, size, 1]))
    ml = np.array([[3, 8, 10], [2, 8, 4]]) / 1000
    assert evaluation.value("model", "lesion_volume_bias") == pytest.approx((1 + 0 + 6) / 3000)
    assert evaluation.value("model", "lesion_volume_correlation") == pytest.approx(np.corrcoef(ml)[0, 1])


@pytest.mark.parametrize("size", [0.125, 1, 1000])
def test_correlation_has_no_unit(size):
    """It is the same for small lesions as for large ones, and for small voxels as for large ones."""
    evaluation = one_voxel_slices()
    pairs = [(2, 3), (4, 3), (5, 7)]
    for index, (flagged, true) in enumerate(pairs):
        scores, labels = (np.arange(8) < number for number in (flagged, true))
        add_scores(evaluation, str(index), scores.astype(float), labels, affine=np.diag([1, 1, size, 1]))
    expected = np.corrcoef(np.transpose(pairs))[0, 1]
    assert evaluation.value("model", "lesion_volume_correlation") == pytest.approx(expected)


def test_correlation_of_equal_volumes():
    """There is none where one of the two does not vary, also among many cases and in resamples."""
    evaluation = one_voxel_slices()
    for index in range(7):
        scores, labels = (np.arange(9) < number for number in (3, 1 + index))
        add_scores(evaluation, str(index), scores.astype(float), labels, affine=np.diag([1, 1, 0.7, 1]))
    assert math.isnan(evaluation.value("model", "lesion_volume_correlation"))
    weights = np.random.default_rng(0).multinomial(7, [1 / 7] * 7, 100)
    assert np.isnan(METRICS["lesion_volume_correlation"].values(evaluation.pooled["model"], weights)).all()


# ------------------------------------------------------------------------------------------------------------- voxels


def test_aupro_by_hand():
    """Lesions of one voxel and of three, twelve normal voxels."""
    scores = np.array([0.9, 0, 0.8, 0.4, 0.2, 0, 0.5, 0.35, 0.3, 0.1, 0, 0, 0, 0, 0, 0])
    labels = np.array([1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    evaluation = one_voxel_slices()
    add_scores(evaluation, "case", scores, labels)
    # at 0.8 all of the first and a third of the second, 2/3 in the mean; after one false alarm 5/6, after three 1
    area = 1 / 12 * 2 / 3 + 2 / 12 * 5 / 6 + (AUPRO_LIMIT - 3 / 12) * 1
    assert AUPRO_LIMIT == 0.3
    assert evaluation.value("model", "pixel_aupro") == pytest.approx(area / 0.3)
    assert plain_aupro([Case(*(array[None, None] for array in (scores, labels, labels + 1)))]) == pytest.approx(
        area / 0.3
    )


@pytest.mark.parametrize(("separation", "of_small"), [(1, -3), (3, 0.5), (6, -3), (6, 2)])
def test_aupro_of_small_lesions_beside_a_large_one(separation, of_small):
    """A single voxel weighs as much as a lesion of 46,656, and must not be lost among its scores."""
    rng = np.random.default_rng(0)
    label = np.zeros((64, 64, 64), dtype=bool)
    label[8:44, 8:44, 8:44] = True
    scores = rng.normal(separation * label)
    label[60, 60, 4:60:8] = True
    scores[60, 60, 4:60:8] = rng.normal(of_small, 0.3, 7)
    case = Case(scores.astype(np.float32), label, np.ones_like(label))
    normal, large = np.sort(case.anomaly_map[~label]), np.sort(case.anomaly_map[8:44, 8:44, 8:44].ravel())
    small = np.sort(case.anomaly_map[60, 60, 4:60:8])
    thresholds = np.unique(case.anomaly_map)[::-1]
    above = [1 - np.searchsorted(part, thresholds) / len(part) for part in (normal, large, *small[:, None])]
    x, y = np.append(0, above[0]), np.append(0, np.mean(above[1:], axis=0))
    inside = x <= AUPRO_LIMIT
    x, y = np.append(x[inside], AUPRO_LIMIT), np.append(y[inside], np.interp(AUPRO_LIMIT, x, y))
    value = evaluate([case]).value("model", "pixel_aupro")
    assert value == pytest.approx(trapezoid(y, x) / AUPRO_LIMIT, abs=2e-4)


def test_dice_by_hand():
    """Pooled: 3 detected of 5, 1 false alarm; by case 2/3 and 2/3 … and none without lesion."""
    evaluation = one_voxel_slices()
    add_scores(evaluation, "a", np.array([0.5, 0.9, 0.1, 0.1, 0.6]), np.array([1, 1, 1, 0, 0]))
    add_scores(evaluation, "b", np.array([0.7, 0.4, 0.4]), np.array([1, 1, 0]))
    add_scores(evaluation, "c", np.array([0.7, 0.1, 0.1]), np.array([0, 0, 0]))
    assert evaluation.value("model", "dice_at_threshold") == pytest.approx(2 * 3 / (5 + 5))
    np.testing.assert_allclose(evaluation.per_case("model", "dice_at_threshold"), [4 / 6, 2 / 3, np.nan])
    assert evaluation.value("model", "dice_at_threshold_per_case") == pytest.approx(2 / 3)
    # at 0.1 all of the first two are flagged, at 0.4 two of three lesion voxels of the first
    np.testing.assert_allclose(evaluation.per_case("model", "best_dice_oracle"), [6 / 8, 4 / 5, np.nan])
    assert evaluation.value("model", "best_dice_oracle_per_case") == pytest.approx((6 / 8 + 4 / 5) / 2)
    assert evaluation.value("model", "slice_false_alarm_share") == pytest.approx(2 / 6)


@pytest.mark.parametrize("exponents", [[0] * 4, [0, -2, 3, 1, 1]], ids=["one range", "many ranges"])
def test_voxels_of_several_large_cases(exponents):
    """A quarter of a million voxels and more, of which 1 % is lesion: pooled, and each case by bins of its own."""
    rng = np.random.default_rng(0)
    cases = []
    for exponent in exponents:
        label = rng.random((40, 40, 41)) < 0.01
        scores = 10.0**exponent * (5 + rng.normal(1.5 * label))
        cases.append(Case(scores.astype(np.float32), label, np.ones_like(label)))
    evaluation = evaluate(cases, threshold=None)
    for name in ("pixel_auroc", "pixel_average_precision"):
        assert evaluation.value("model", name) == pytest.approx(PLAIN_METRICS[name](cases), abs=1e-4)
        expected = [PLAIN_METRICS[name]([case]) for case in cases]
        np.testing.assert_allclose(evaluation.per_case("model", name), expected, atol=5e-5)
        per_case = f"{name}_per_case"
        assert evaluation.value("model", per_case) == pytest.approx(np.mean(expected), abs=1e-5)


def test_dice_of_many_voxels():
    """More than are kept as they are: at the threshold they are counted one by one."""
    rng = np.random.default_rng(0)
    labels = rng.random((40, 40, 40)) < 0.1
    case = Case(rng.normal(labels * 1.5).astype(np.float32), labels, np.ones_like(labels))
    evaluation = evaluate([case], threshold=1.2345)
    assert evaluation.value("model", "dice_at_threshold") == pytest.approx(
        plain_dice(*voxels([case]), 1.2345), abs=1e-7
    )
    detected = labels.ravel()[np.argsort(-case.anomaly_map.ravel())].cumsum()  # without ties
    best = (2 * detected / (np.arange(1, labels.size + 1) + labels.sum())).max()
    assert evaluation.value("model", "best_dice_oracle") == pytest.approx(best, abs=1e-4)


# ----------------------------------------------------------------------------------------------------------- undefined


def test_what_needs_a_threshold():
    assert {name for name, metric in METRICS.items() if metric.needs_threshold} == AT_THRESHOLD


@pytest.mark.parametrize("name", METRICS)
def test_without_a_threshold(name):
    evaluation = evaluate(CASES, threshold=None)
    if name not in AT_THRESHOLD:
        assert evaluation.value("model", name) == EVALUATION.value("model", name)
        return
    estimate = evaluation.estimates("model")[name]
    assert (estimate.value, estimate.interval, estimate.reason) == (None, None, "no label-free threshold was given")
    assert np.isnan(evaluation.per_case("model", name)).all()


ALL_LESION = Case(np.ones((3, 3, 4)), np.ones((3, 3, 4)), np.ones((3, 3, 4)))
NO_LESION = Case(np.ones((3, 3, 4)), np.zeros((3, 3, 4)), np.ones((3, 3, 4)))
ALWAYS = {"false_positives_per_volume", "lesion_volume_bias"}
WITHOUT_LESION = ALWAYS | {"slice_false_alarm_share"}
WITHOUT_NORMAL = set(METRICS) - {
    *("slice_auroc", "slice_auroc_position_matched", "slice_auroc_macro", "slice_false_alarm_share", "pixel_auroc"),
    *("pixel_auroc_per_case", "pixel_aupro", "volume_auroc", "volume_average_precision", "slab_auroc"),
    *("slab_average_precision", "lesion_volume_correlation"),
}


@pytest.mark.parametrize(("case", "defined"), [(NO_LESION, WITHOUT_LESION), (ALL_LESION, WITHOUT_NORMAL)])
def test_one_class(case, defined):
    """Undefined is ``None`` with a reason; all else has a value."""
    estimates = evaluate([case, case]).estimates("model")
    assert {name for name, estimate in estimates.items() if estimate.value is not None} == defined
    for name, estimate in estimates.items():
        if name not in defined:
            assert estimate.interval is None
            assert estimate.reason == METRICS[name].undefined
            assert estimate.reason.startswith("needs ")


def test_no_slice_counts():
    """A brain smaller than top_k everywhere: nothing of slices, the rest as ever, and no warning."""
    evaluation = AnomalyEvaluation({"model": 0.5}, EvaluationSettings(top_k=100, min_lesion_size=1, box_levels=4))
    for index, case in enumerate(CASES):
        evaluation.add(f"case {index}", {"model": case.anomaly_map}, case.label, case.brain)
    with np.errstate(all="raise"):
        estimates = evaluation.estimates("model")
    undefined = {name for name, estimate in estimates.items() if estimate.value is None}
    assert undefined == {name for name, metric in METRICS.items() if metric.needs_slices}
    assert undefined >= {name for name, metric in METRICS.items() if metric.level == "slice"} | {"rbdc", "slab_auroc"}
    assert {estimates[name].reason for name in undefined} == {"needs a slice with top_k voxels of brain"}
    assert estimates["pixel_auroc"].value == pytest.approx(PLAIN_METRICS["pixel_auroc"](CASES))


# --------------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize("name", METRICS)
def test_definitions(name):
    metric = METRICS[name]
    assert metric.level in ("slice", "pixel", "lesion", "volume")
    assert len(metric.definition) > 40
    assert metric.title
    assert metric.undefined
    assert metric.unit in (None, "ml", "per volume")
    neither = {"lesion_volume_bias", "slice_position_matched_share"}
    lower = {"slice_false_alarm_share", "false_positives_per_volume"}
    assert metric.higher_is_better is (None if name in neither else name not in lower)
    assert ("oracle" in name) == ("oracle" in metric.title.lower())


def test_titles_tell_the_metrics_of_a_level_apart():
    titles = [(metric.level, metric.title) for metric in METRICS.values()]
    assert len(set(titles)) == len(titles)


def test_constants_of_the_definitions():
    assert FROC_PLACES == (0.25, 0.5, 1, 2, 4, 8)
    assert str(AUPRO_LIMIT) in METRICS["pixel_aupro"].definition
    assert SMALL.top_k == 3
    assert len(slices(CASES[5])) == 9  # of 12: the first and the last are empty, the second has too few voxels
    assert volumes(CASES)[1].tolist() == [True, True, False, True, True, False]
    assert THRESHOLD == 0.5
