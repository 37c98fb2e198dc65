"""Counts of scores: what they promise at every threshold."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_checks import at_or_above, draw_scores, score_sets, truly_at_or_above

from ssmctb_monai.metrics.score_counts import PRECISION, ScoreCounts

few_scores = st.lists(st.integers(-3, 6), min_size=1, max_size=60).map(np.array)


def assert_precise(counts, scores, bound=PRECISION):
    """The number of scores at or above every number errs by ``bound`` at most; that above it is the next number's."""
    thresholds = np.append(np.unique(scores), np.inf)
    true = truly_at_or_above(scores, thresholds)
    assert (np.abs(at_or_above(counts, thresholds) - true) <= bound * true * (1 + 1e-9)).all()


def test_precision_is_that_of_the_text():
    assert PRECISION == 2**-12


def test_by_hand():
    counts = ScoreCounts.of(np.array([[0.5, 0.1], [0.5, 2]], dtype=np.float32), np.array([[1, 10], [2, 4.5]]))
    np.testing.assert_array_equal(counts.values, np.float32([0.1, 0.5, 2]))
    assert counts.values.dtype == np.float32
    assert counts.counts.tolist() == [1, 2, 1]
    assert counts.weights.tolist() == [10, 3, 4.5]
    assert counts.total == 4


def test_counts_are_the_weights_where_none_are_given():
    assert ScoreCounts.of(np.array([3, 1, 3])).weights.tolist() == [1, 2]


@settings(max_examples=40, deadline=None)
@given(score_sets(max_cases=1, max_size=40_000))
def test_precision(cases):
    scores, _ = cases[0]
    counts = ScoreCounts.of(scores)
    assert counts.total == len(scores)
    assert (np.diff(counts.values) > 0).all()
    assert np.isin(counts.values, scores).all()
    assert_precise(counts, scores)


@settings(max_examples=30, deadline=None)
@given(score_sets(max_cases=6, max_size=12_000))
def test_precision_of_the_union(cases):
    parts = [scores for scores, _ in cases]
    pooled = ScoreCounts.pooled([ScoreCounts.of(part) for part in parts])
    assert pooled.total == sum(map(len, parts))
    assert (np.diff(pooled.values) > 0).all()
    assert_precise(pooled, np.concatenate(parts))


@pytest.mark.parametrize("repeats", [1, 1000])
def test_few_distinct_scores_stay_as_they_are(repeats):
    """However many voxels share a score: ties stay together."""
    rng = np.random.default_rng(0)
    scores = rng.permutation(np.repeat(rng.normal(size=300).astype(np.float32), repeats))
    weights = rng.random(len(scores))
    counts = ScoreCounts.of(scores, weights)
    values, index, expected = np.unique(scores, return_inverse=True, return_counts=True)
    top = slice(None) if repeats == 1 else slice(-5, None)  # below, a thousand ties are less than 2⁻¹² of those above
    np.testing.assert_array_equal(counts.values[top], values[top])
    np.testing.assert_array_equal(counts.counts[top], expected[top])
    np.testing.assert_allclose(counts.weights[top], np.bincount(index, weights)[top])
    assert_precise(counts, scores, bound=0)


def test_the_4096_highest_scores_stay_as_they_are():
    scores = np.random.default_rng(0).permutation(100_000).astype(np.float64)
    counts = ScoreCounts.of(scores)
    np.testing.assert_array_equal(counts.values[-4096:], np.arange(100_000 - 4096, 100_000))
    assert (counts.counts[-4096:] == 1).all()
    assert len(counts.values) < 25_000


def test_size():
    """4096 (1 + ln(n / 4096)) groups."""
    scores = np.random.default_rng(0).random(1_500_000, dtype=np.float32)
    counts = ScoreCounts.of(scores)
    distinct = len(np.unique(scores))
    assert len(counts.values) == pytest.approx(4096 * (1 + math.log(distinct / 4096)), rel=0.03)
    assert len(counts.values) < 28_500
    assert len(pickle.dumps(counts)) < 28_500 * 20 + 1000


@settings(max_examples=100, deadline=None)
@given(st.lists(few_scores, max_size=5))
def test_pooled_counts_are_those_of_the_union(parts):
    weights = [np.arange(1, 1 + len(part)) / 7 for part in parts]
    pooled = ScoreCounts.pooled([ScoreCounts.of(*pair) for pair in zip(parts, weights, strict=True)])
    union = ScoreCounts.of(np.concatenate([*parts, []]), np.concatenate([*weights, []]))
    np.testing.assert_array_equal(pooled.values, union.values)
    np.testing.assert_array_equal(pooled.counts, union.counts)
    np.testing.assert_allclose(pooled.weights, union.weights, rtol=1e-12)


def test_weights_are_all_kept():
    scores, _ = draw_scores("normal", 0, 50_000, 0.1, 1)
    weights = np.random.default_rng(0).random(50_000)
    counts = ScoreCounts.of(scores, weights)
    assert len(counts.values) < 25_000
    assert counts.weights.sum() == pytest.approx(weights.sum())
    twice = ScoreCounts.pooled([counts, ScoreCounts.of(scores[:0], weights[:0]), counts])
    assert twice.weights.sum() == pytest.approx(2 * weights.sum())
    assert twice.counts.sum() == 100_000


@settings(max_examples=30, deadline=None)
@given(score_sets(max_cases=1, max_size=40_000), st.sampled_from([1, 3, 30, 1000]))
def test_precision_of_the_weights(cases, components):
    """Also of lesions that are small beside others, so that single scores weigh as much as thousands."""
    scores, _ = cases[0]
    rng = np.random.default_rng(len(scores) + components)
    sizes = np.append(rng.integers(1, 4, min(components, len(scores)) - 1), 1)
    component = np.minimum(np.searchsorted(sizes.cumsum(), np.arange(len(scores)), side="right"), len(sizes))
    weights = rng.permutation(1 / np.bincount(component)[component])  # small ones, and one of all the rest
    counts = ScoreCounts.of(scores, weights)
    thresholds = np.unique(scores)
    order = np.argsort(scores)
    true = np.append(weights[order][::-1].cumsum()[::-1], 0)[np.searchsorted(scores[order], thresholds)]
    above = np.append(counts.weights[::-1].cumsum()[::-1], 0)[np.searchsorted(counts.values, thresholds)]
    assert (np.abs(above - true) <= 2 * PRECISION * true * (1 + 1e-6) + 1e-9).all()


def test_empty():
    for counts in (
        ScoreCounts.of(np.zeros((0, 3), np.float32)),
        ScoreCounts.pooled([]),
        ScoreCounts.of(*2 * [np.zeros(0)]),
    ):
        assert counts.total == 0
        assert len(counts.values) == len(counts.counts) == len(counts.weights) == len(counts.edges()) == 0


def test_infinite_scores():
    scores = np.array([np.inf, -np.inf, 0, np.inf])
    counts = ScoreCounts.of(scores)
    assert counts.values.tolist() == [-np.inf, 0, np.inf]
    assert counts.counts.tolist() == [1, 1, 2]


@pytest.mark.parametrize("weights", [None, np.ones(3)])
def test_nan(weights):
    with pytest.raises(ValueError, match="NaN"):
        ScoreCounts.of(np.array([1, np.nan, 2]), weights)


def test_scores_are_not_changed():
    scores = np.array([3.0, 1, 2])
    ScoreCounts.of(scores)
    assert scores.tolist() == [3, 1, 2]


def test_edges_of_few_scores_are_the_scores():
    parts = [ScoreCounts.of(np.array(scores)) for scores in ([3.0, 1, 1], [2.0, 3])]
    assert ScoreCounts.pooled(parts).edges().tolist() == [1, 2, 3]


def test_edges_are_the_lowest_scores_of_groups():
    scores = np.arange(50_000.0)
    edges = ScoreCounts.pooled([ScoreCounts.of(scores[::2]), ScoreCounts.of(scores[1::2])]).edges()
    assert len(edges) < 16_000
    above = 50_000 - edges
    assert (
        np.diff(-above) <= np.maximum(2 * PRECISION * above[:-1], 1)
    ).all()  # one step for the cases, one for the bins
    np.testing.assert_array_equal(edges[-4000:], scores[-4000:])


# ----------------------------------------------------------------------------------------------------------- thresholds


@settings(max_examples=200, deadline=None)
@given(few_scores, st.integers(1, 63))
def test_threshold(scores, parts):
    """At most the share of the scores lies at or above it, and more than that at or above the next lower score."""
    share = parts / 64  # exact in binary
    threshold = ScoreCounts.of(scores.astype(np.float32)).threshold(share)
    assert (scores >= threshold).mean() <= share
    lower = scores[scores < threshold]
    assert len(lower) == len(scores) or lower.max() < threshold  # it is a score, or above all of them
    assert threshold in scores or threshold == np.nextafter(np.float32(scores.max()), np.float32(np.inf))
    assert len(lower) == 0 or (scores >= lower.max()).mean() > share


@pytest.mark.parametrize(
    ("scores", "share", "expected"),
    [
        (range(100), 0.01, 99),
        (range(100), 0.05, 95),
        (range(100), 0.0501, 95),
        (range(100), 0.0499, 96),
        ([0, 1, 1, 2], 0.25, 2),
        ([0, 1, 1, 2], 0.5, 2),  # at 1 there would be three of four
        ([0, 1, 1, 2], 0.75, 1),
        ([5, 5, 5, 5], 0.5, np.nextafter(5, 6)),
        ([0, 1, 2, 2], 0.25, np.nextafter(2, 3)),
    ],
)
def test_threshold_by_hand(scores, share, expected):
    assert ScoreCounts.of(np.array(scores, dtype=float)).threshold(share) == expected


def test_threshold_above_ties_of_float32():
    """The next number is that of the scores' type, so that it stays above them."""
    value = np.float32(0.9999)
    threshold = ScoreCounts.of(np.full(10, value)).threshold(0.01)
    assert threshold > value
    assert not (np.full(10, value) >= threshold).any()


@pytest.mark.parametrize("share", [0.5, 0.01, 1e-3])
@pytest.mark.parametrize("parts", [1, 7])
def test_threshold_of_many_scores(share, parts):
    scores = np.random.default_rng(0).lognormal(size=300_000).astype(np.float32)
    counts = ScoreCounts.pooled([ScoreCounts.of(part) for part in np.array_split(scores, parts)])
    reached = (scores >= counts.threshold(share)).mean()
    assert reached <= share * (1 if parts == 1 else 1 + PRECISION)
    assert reached > share * (1 - 3 * PRECISION)
