"""Ranking figures from counts, against scikit-learn's from scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ssmctb_monai.metrics import auroc, average_precision

PAIRS = ((auroc, roc_auc_score), (average_precision, average_precision_score))


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


@pytest.mark.parametrize(("figure", "reference"), PAIRS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_heavily_tied_scores(figure, reference, data):
    scores, labels = data.draw(scored(st.integers(0, 4)))
    assert figure(*counts(scores, labels)) == pytest.approx(reference(labels, scores), abs=1e-12)


@pytest.mark.parametrize(("figure", "reference"), PAIRS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_continuous_scores(figure, reference, data):
    scores, labels = data.draw(scored(st.floats(0, 1, width=32)))
    assert figure(*counts(scores, labels)) == pytest.approx(reference(labels, scores), abs=1e-12)


@pytest.mark.parametrize("figure", [auroc, average_precision])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_empty_bins_change_nothing(figure, data):
    scores, labels = data.draw(scored(st.integers(0, 4)))
    normal, anomalous = (np.bincount(scores[part], minlength=5) for part in (~labels, labels))
    padded = [np.insert(array, [0, 1, 3, 5], 0) for array in (normal, anomalous)]
    assert figure(*padded) == pytest.approx(figure(normal, anomalous), abs=1e-12)


@pytest.mark.parametrize(("figure", "perfect", "worst"), [(auroc, 1, 0), (average_precision, 1, 0.5)])
def test_perfect_and_reversed_order(figure, perfect, worst):
    assert figure(np.array([4, 0]), np.array([0, 4])) == perfect
    assert figure(np.array([0, 4]), np.array([4, 0])) == worst


@pytest.mark.parametrize("classes", [(0, 3), (3, 0), (0, 0)])
def test_empty_classes(classes):
    normal, anomalous = (np.array([0, count, 0]) for count in classes)
    assert math.isnan(auroc(normal, anomalous))
    if classes[1] == 0:
        assert math.isnan(average_precision(normal, anomalous))
    else:
        assert average_precision(normal, anomalous) == 1


def test_one_bin():
    assert auroc(np.array([6]), np.array([2])) == 0.5
    assert average_precision(np.array([6]), np.array([2])) == 0.25


def test_counts_beyond_32_bits():
    """As many voxels as a thousand cases have."""
    normal, anomalous = np.array([9, 1], np.int64) * 10**9, np.array([1, 9], np.int64) * 10**8
    assert auroc(normal, anomalous) == pytest.approx(0.9 * 0.9 + 0.5 * (0.9 * 0.1 * 2))
    assert average_precision(normal, anomalous) == pytest.approx(0.9 * 9 / 19 + 0.1 * 1 / 11)
