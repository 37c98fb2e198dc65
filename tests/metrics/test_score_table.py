"""AUROC and average precision of counts against scikit-learn's of scores: one case and many, few voxels and many."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from metric_checks import (
    DISTRIBUTIONS,
    at_or_above,
    auroc_of,
    average_precision_of,
    draw_scores,
    score_sets,
    truly_at_or_above,
)

from ssmctb_monai.metrics import auroc, average_precision, score_table
from ssmctb_monai.metrics.score_counts import PRECISION, ScoreCounts
from ssmctb_monai.metrics.score_table import ScoreTable

PAIRS = ((auroc, auroc_of), (average_precision, average_precision_of))


def make_table(cases):
    return ScoreTable(
        [ScoreCounts.of(scores[~labels]) for scores, labels in cases],
        [ScoreCounts.of(scores[labels]) for scores, labels in cases],
    )


def union(cases):
    return tuple(np.concatenate(parts) for parts in zip(*cases, strict=True))


def assert_agrees(cases, case_weights, expected):
    """Within 1e-4 of scikit-learn's value of the scores, for every set of cases."""
    table = make_table(cases)
    for metric, reference in PAIRS:
        values = [reference(*scores) for scores in expected]
        np.testing.assert_allclose(table.apply(metric, case_weights), values, rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- by hand

FIRST = (np.array([1.0, 2, 2, 5]), np.array([False, False, True, True]))
SECOND = (np.array([0.0, 5, 3]), np.array([False, False, True]))


def test_by_hand():
    table = make_table([FIRST, SECOND])
    assert table.edges.tolist() == [0, 1, 2, 3, 5]
    assert table.normal.tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    assert table.anomalous.tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 1, 0]]
    np.testing.assert_array_equal(table.weights, table.anomalous)


def test_sets_of_cases():
    """Normal 0 1 2 5, anomalous 2 3 5: 2 is above two and ties with one, 3 is above three, 5 too and ties with one."""
    table = make_table([FIRST, SECOND])
    weights = np.array([[1, 1], [1, 0], [0, 1], [0, 2], [2, 1]])
    expected = [9 / 12, 3.5 / 4, 1 / 2, 1 / 2, auroc_of(*union([FIRST, FIRST, SECOND]))]
    np.testing.assert_allclose(table.apply(auroc, weights), expected)


def test_totals_and_weights():
    """A metric gets counts and totals summed over the cases, as often as each counts."""
    normal = [ScoreCounts.of(np.array([1.0])), ScoreCounts.of(np.array([2.0, 3]))]
    anomalous = [
        ScoreCounts.of(np.array([2.0]), np.array([0.25])),
        ScoreCounts.of(np.array([2.0, 2]), np.array([0.5, 1])),
    ]
    table = ScoreTable(normal, anomalous)
    seen = []

    def metric(*arguments):
        seen.append([argument.tolist() for argument in arguments])
        return arguments[-1][:, 0]

    weights, totals = np.array([[1, 1], [2, 0]]), (np.array([10, 1]), np.array([7, 70]))
    assert table.apply(metric, weights, *totals).tolist() == [77, 14]
    assert seen.pop() == [[[1, 1, 1], [2, 0, 0]], [[0, 3, 0], [0, 2, 0]], [[11], [20]], [[77], [14]]]
    table.apply(metric, weights, *totals, weighted=True)
    assert seen.pop()[1] == [[0, 1.75, 0], [0, 0.5, 0]]


def test_many_sets_in_parts(monkeypatch):
    """What does not fit in memory at once is computed in parts."""
    cases = [draw_scores("normal", seed, 50, 0.3, 1) for seed in range(4)]
    weights = np.random.default_rng(0).integers(1, 4, (25, 4))
    expected = make_table(cases).apply(auroc, weights)
    for chunk in (1, 1000, 1201):
        monkeypatch.setattr(score_table, "CHUNK", chunk)
        np.testing.assert_allclose(make_table(cases).apply(auroc, weights), expected, rtol=1e-12)
    assert len(np.unique(expected)) > 15


@pytest.mark.parametrize("cases", [0, 1, 3])
def test_no_scores(cases):
    nothing = np.zeros(0), np.zeros(0, dtype=bool)
    table = make_table([nothing] * cases)
    for metric in (auroc, average_precision):
        assert np.isnan(table.apply(metric, np.ones((2, cases)))).all()


@pytest.mark.parametrize("size", [10, 250_000])
def test_one_class(size):
    scores = np.random.default_rng(0).random(size)
    normal, anomalous = (make_table([(scores, np.full(size, has_lesion))]) for has_lesion in (False, True))
    weights = np.ones((1, 1))
    for table in (normal, anomalous):
        assert math.isnan(table.apply(auroc, weights)[0])
    assert math.isnan(normal.apply(average_precision, weights)[0])
    assert anomalous.apply(average_precision, weights) == 1


def test_infinite_scores():
    scores = np.array([-np.inf, -np.inf, 0, 1, np.inf, np.inf, np.inf])
    labels = np.array([False, True, False, True, True, False, True])
    assert_agrees([(scores, labels)], np.ones((1, 1)), [(scores, labels)])
    many, of_many = draw_scores("normal", 0, 30_000, 0.1, 1)
    case = np.concatenate([many, np.float32(scores)]), np.concatenate([of_many, labels])
    assert_agrees([case], np.ones((1, 1)), [case])


# -------------------------------------------------------------------------------------------------- random, many voxels


@settings(max_examples=25, deadline=None)
@given(score_sets(max_cases=4, max_size=30_000))
def test_pooled_cases(cases):
    assert_agrees(cases, np.ones((1, len(cases))), [union(cases)])


@settings(max_examples=20, deadline=None)
@given(score_sets(max_cases=4, max_size=30_000))
def test_precision(cases):
    """Scores at or above any bin's edge are counted up to 2⁻¹², in either class."""
    table = make_table(cases)
    scores, labels = union(cases)
    for counts, of_class in ((table.normal, ~labels), (table.anomalous, labels)):
        true = truly_at_or_above(scores[of_class], table.edges)
        above = counts.sum(axis=0, dtype=float)[::-1].cumsum()[::-1]
        assert (np.abs(above - true) <= PRECISION * true * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("prevalence", [0.002, 0.3])
def test_many_voxels(name, prevalence):
    case = draw_scores(name, 0, 60_000, prevalence, 1.5)
    assert_agrees([case], np.ones((1, 1)), [case])


@pytest.mark.parametrize(("location", "scale"), [(0, 1e-6), (0, 1e5), (1e5, 1e-6), (1e5, 1)])
def test_ranges(location, scale):
    scores, labels = draw_scores("lognormal", 0, 60_000, 0.01, 1, np.float64)
    cases = [((location + scale * scores).astype(dtype), labels) for dtype in (np.float64, np.float32)]
    for case in cases:
        assert_agrees([case], np.ones((1, 1)), [case])
    assert_agrees(cases, np.ones((1, 2)), [union(cases)])  # of two types


def test_many_cases_of_very_different_ranges():
    """Raw intensities of scanners with units of their own."""
    cases = []
    for seed in range(8):
        scores, labels = draw_scores("normal", seed, 25_000, 0.005, 1)
        cases.append(((scores + 10) * 10.0 ** (seed % 4 - 2), labels))
    assert_agrees(cases, np.ones((1, 8)), [union(cases)])


@pytest.mark.parametrize("period", [0.5, 1, 3])
@pytest.mark.parametrize("prevalence", [0.5, 0.01])
@pytest.mark.parametrize("lesions_first", [False, True])
def test_lesions_in_one_part_of_every_group(period, prevalence, lesions_first):
    """The most unfavourable order: within each step of 2⁻¹² of the rank, or a like one, all lesions are on one side."""
    size = 60_000
    place = np.log(np.arange(size, 0, -1)) / np.log1p(PRECISION) / period % 1
    case = np.arange(size, dtype=float), place < prevalence if lesions_first else place >= 1 - prevalence
    assert_agrees([case], np.ones((1, 1)), [case])


def test_counts_that_the_bins_are_made_of():
    scores, _ = draw_scores("normal", 0, 100_000, 0.1, 0)
    counts = ScoreCounts.of(scores)
    table = ScoreTable([counts], [ScoreCounts.of(scores[:0])])
    assert table.normal.sum() == 100_000
    above = table.normal[0][::-1].cumsum(dtype=float)[::-1]
    np.testing.assert_array_equal(above, at_or_above(counts, table.edges))
