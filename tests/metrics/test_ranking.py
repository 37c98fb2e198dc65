"""Ranking metrics from counts, against scikit-learn's, MONAI's and NumPy's, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_checks import plain_area
from monai.metrics import compute_froc_curve_data, compute_froc_score
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ssmctb_monai.metrics import auroc, average_precision
from ssmctb_monai.metrics.ranking import area_up_to, best_dice, dice, from_top, mean_height, ratio

PAIRS = ((auroc, roc_auc_score), (average_precision, average_precision_score))
PLACES = (0.25, 0.5, 1, 2, 4, 8)


def counts(scores, labels):
    _, ranks = np.unique(scores, return_inverse=True)
    size = ranks.max() + 1
    return np.bincount(ranks[~labels], minlength=size), np.bincount(ranks[labels], minlength=size)


@st.composite
def scored(draw, values):
    size = draw(st.integers(2, 60))
    scores = np.array(draw(st.lists(values, min_size=size, max_size=size)))
    labels = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    labels[:2] = [False, True]
    return scores, labels


@st.composite
def curves(draw, largest_step=3):
    """Ascending curve from the origin, with vertical and level parts, as exact binary fractions."""
    steps = draw(st.lists(st.tuples(st.integers(0, largest_step), st.integers(0, 3)), min_size=1, max_size=12))
    x, y = np.cumsum([(0, 0), *steps], axis=0).T / 8
    return x, y


# --------------------------------------------------------------------------------------------------- AUROC and the like


@pytest.mark.parametrize(("metric", "reference"), PAIRS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_heavily_tied_scores(metric, reference, data):
    scores, labels = data.draw(scored(st.integers(0, 4)))
    assert metric(*counts(scores, labels)) == pytest.approx(reference(labels, scores), abs=1e-12)


@pytest.mark.parametrize(("metric", "reference"), PAIRS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_continuous_scores(metric, reference, data):
    scores, labels = data.draw(scored(st.floats(0, 1, width=32)))
    assert metric(*counts(scores, labels)) == pytest.approx(reference(labels, scores), abs=1e-12)


@pytest.mark.parametrize("metric", [auroc, average_precision, best_dice])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_empty_bins_change_nothing(metric, data):
    scores, labels = data.draw(scored(st.integers(0, 4)))
    normal, anomalous = (np.bincount(scores[part], minlength=5) for part in (~labels, labels))
    padded = [np.insert(array, [0, 1, 3, 5], 0) for array in (normal, anomalous)]
    assert metric(*padded) == pytest.approx(metric(normal, anomalous), abs=1e-12)


def test_by_hand():
    """Scores 0 1 1 2 2 3, of which one 1, one 2 and 3 are anomalous."""
    normal, anomalous = np.array([1, 1, 1, 0]), np.array([0, 1, 1, 1])
    assert auroc(normal, anomalous) == pytest.approx((1.5 + 2.5 + 3) / 9)
    assert average_precision(normal, anomalous) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert best_dice(normal, anomalous) == pytest.approx(max(2 / 4, 4 / 6, 6 / 8, 6 / 9))


@pytest.mark.parametrize(
    ("metric", "perfect", "worst"), [(auroc, 1, 0), (average_precision, 1, 0.5), (best_dice, 1, 2 / 3)]
)
def test_perfect_and_reversed_order(metric, perfect, worst):
    assert metric(np.array([4, 0]), np.array([0, 4])) == perfect
    assert metric(np.array([0, 4]), np.array([4, 0])) == pytest.approx(worst)


@pytest.mark.parametrize("classes", [(0, 3), (3, 0), (0, 0)])
def test_empty_classes(classes):
    normal, anomalous = (np.array([0, count, 0]) for count in classes)
    assert math.isnan(auroc(normal, anomalous))
    for metric in (average_precision, best_dice):
        value = metric(normal, anomalous)
        assert value == 1 if classes[1] else math.isnan(value)


def test_one_bin():
    assert auroc(np.array([6]), np.array([2])) == 0.5
    assert average_precision(np.array([6]), np.array([2])) == 0.25
    assert best_dice(np.array([6]), np.array([2])) == 2 * 2 / (8 + 2)


def test_counts_beyond_32_bits():
    """As many voxels as a thousand cases have."""
    normal, anomalous = np.array([9, 1], np.int64) * 10**9, np.array([1, 9], np.int64) * 10**8
    assert auroc(normal, anomalous) == pytest.approx(0.9 * 0.9 + 0.5 * (0.9 * 0.1 * 2))
    assert average_precision(normal, anomalous) == pytest.approx(0.9 * 9 / 19 + 0.1 * 1 / 11)


@settings(max_examples=40, deadline=None)
@given(scored(st.integers(0, 9)))
def test_best_dice(case):
    scores, labels = case
    expected = max(f1_score(labels, scores >= threshold) for threshold in np.unique(scores))
    assert best_dice(*counts(scores, labels)) == pytest.approx(expected, abs=1e-12)


def test_dice():
    np.testing.assert_allclose(
        dice(np.array([2, 0, 3, 0, 0]), np.array([1, 5, 0, 4, 0]), np.array([3, 2, 0, 0, 0])),
        [0.5, 0, 1, np.nan, np.nan],
    )


# --------------------------------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize(
    ("x", "y", "limit", "expected"),
    [
        ([0, 1], [0, 1], 1, 0.5),
        ([0, 1], [0, 1], 0.5, 0.25),
        ([0, 1], [0, 1], 4, (0.5 + 3) / 4),  # level beyond the last point
        ([0, 0, 1], [0, 1, 1], 0.3, 1),  # upright at 0
        ([0, 0.5, 0.5, 1], [0, 0, 1, 1], 0.5, 0),  # upright at the limit
        ([0, 0.5, 0.5, 1], [0, 0, 1, 1], 1, 0.5),
        ([0, 0.2, 0.4], [0, 0.4, 1], 0.3, (0.2 * 0.2 + 0.1 * 0.55) / 0.3),
        ([0, 0], [0, 0.7], 2, 0.7),
        ([0], [0.25], 1, 0.25),
    ],
)
def test_area_by_hand(x, y, limit, expected):
    assert area_up_to(np.array(x, float), np.array(y, float), limit) == pytest.approx(expected)


@settings(max_examples=150, deadline=None)
@given(curves(), st.sampled_from([0.25, 0.3, 1, 2, 5]))
def test_area_against_refined_trapezoids(curve, limit):
    """On a grid that has the curve's own points in it and, just before each, what it is there from the left."""
    x, y = curve
    grid = np.unique([0, *np.linspace(0, limit, 1001), *x[x <= limit]])
    right = np.interp(grid, x, y)  # upper end of an upright part
    first = np.searchsorted(x, grid)
    is_point = (first < len(x)) & (x[np.minimum(first, len(x) - 1)] == grid)
    left = np.where(is_point, y[np.minimum(first, len(x) - 1)], right)
    expected = ((grid[1:] - grid[:-1]) * (right[:-1] + left[1:]) / 2).sum() / limit
    assert area_up_to(x, y, limit) == pytest.approx(expected, abs=1e-9)
    assert area_up_to(x, y, limit) == pytest.approx(plain_area(x, y, limit), abs=1e-9)


def test_area_of_a_smooth_curve():
    x = np.arange(2**17) / 2**16
    y = np.sqrt(x)
    below = x <= 0.25
    assert area_up_to(x, y, 0.25) == pytest.approx(trapezoid(y[below], x[below]) / 0.25, abs=1e-12)
    assert area_up_to(x, y, 0.25) == pytest.approx(2 / 3 * math.sqrt(0.25), abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(curves(largest_step=30))
def test_mean_height_is_monais(curve):
    x, y = curve
    expected = compute_froc_score(x[::-1], y[::-1], PLACES)
    assert mean_height(x, y, PLACES) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(scored(st.integers(0, 12)), st.integers(1, 6), st.integers(0, 3))
def test_mean_height_from_scores_is_monais(case, images, missed):
    """MONAI's curve leaves out the lowest score of all; one below them makes it whole."""
    scores, found = case
    normal, anomalous = counts(scores, found)
    targets = found.sum() + missed
    x, y = from_top(normal) / images, from_top(anomalous) / targets
    x_monai, y_monai = compute_froc_curve_data(np.append(scores[~found], -1), scores[found], targets, images)
    np.testing.assert_allclose(x_monai[::-1], x)
    np.testing.assert_allclose(y_monai[::-1], y)
    assert mean_height(x, y, PLACES) == pytest.approx(compute_froc_score(x_monai, y_monai, PLACES), abs=1e-12)


@pytest.mark.parametrize(
    ("place", "expected"), [(0, 0.5), (0.5, 0.55), (1, 0.9), (1.5, 0.9), (2, 0.9), (3, 0.95), (4, 1), (9, 1)]
)
def test_height_at_a_place(place, expected):
    """At an upright part the upper end counts."""
    x, y = np.array([0, 0, 1, 1, 2, 4]), np.array([0, 0.5, 0.6, 0.9, 0.9, 1])
    assert mean_height(x, y, [place]) == pytest.approx(expected)


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("metric", [auroc, average_precision, best_dice, from_top])
def test_sets_of_counts_row_by_row(metric):
    rng = np.random.default_rng(0)
    normal, anomalous = rng.integers(0, 4, (2, 3, 5, 8))
    normal[0, 0] = anomalous[0, 1] = normal[1, 2] = anomalous[1, 2] = 0
    arguments = (normal,) if metric is from_top else (normal, anomalous)
    together = metric(*arguments)
    assert together.shape[:2] == (3, 5)
    for place in np.ndindex(3, 5):
        np.testing.assert_array_equal(together[place], metric(*(argument[place] for argument in arguments)))


@pytest.mark.parametrize(
    "metric", [lambda x, y: area_up_to(x, y, 1.3), lambda x, y: mean_height(x, y, PLACES)], ids=["area", "height"]
)
def test_curves_row_by_row(metric):
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.integers(0, 20, (2, 3, 5, 8)) / 8, axis=-1)
    x[..., 0] = 0
    y[1, 1] = np.nan
    together = metric(x, y)
    assert together.shape == (3, 5)
    assert np.isnan(together[1, 1])
    assert np.isnan(together).sum() == 1
    for place in np.ndindex(3, 5):
        np.testing.assert_array_equal(together[place], metric(x[place], y[place]))


def test_from_top():
    assert from_top(np.array([[1, 0, 2], [0, 0, 5]])).tolist() == [[0, 2, 2, 3], [0, 5, 5, 5]]


def test_ratio():
    np.testing.assert_array_equal(ratio(np.array([[1], [0]]), np.array([2, 0])), [[0.5, np.nan], [0, np.nan]])
    assert math.isnan(ratio(np.array(1), np.array(0)))
