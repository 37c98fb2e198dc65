"""Curves of a report: they are scikit-learn's, and stay so when most of their points are left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import trapezoid
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from ssmctb_monai.metrics import AnomalyEvaluation, EvaluationSettings
from ssmctb_monai.metrics.curves import POINTS, curves_of
from ssmctb_monai.metrics.definitions import FROC_PLACES
from ssmctb_monai.metrics.ranking import mean_height

NAMES = ["lesion_froc", "pixel_pr", "pixel_roc", "slice_pr", "slice_roc"]
SETTINGS = EvaluationSettings(top_k=1, min_lesion_size=1, resamples=1)


def evaluate(*cases, threshold=None):
    """Curves of cases, each given by its map and its label."""
    evaluation = AnomalyEvaluation({} if threshold is None else {"model": threshold}, SETTINGS)
    for index, (anomaly_map, label) in enumerate(cases):
        evaluation.add(f"case {index}", {"model": anomaly_map}, label)
    return evaluation


def curves(*cases, threshold=None):
    return curves_of(evaluate(*cases, threshold=threshold).pooled["model"])


def draw(seed, shape, levels=None, separation=1.0, share=0.1):
    """A map that ranks lesions above the rest by chance only, with ties where it has few levels."""
    rng = np.random.default_rng(seed)
    label = rng.random(shape) < share
    scores = rng.normal(separation * label)
    return (scores if levels is None else np.round(scores * levels) / levels), label


def slices_of(*cases):
    """Scores and labels of slices, whose score is their highest voxel."""
    return (
        np.concatenate([anomaly_map.max(axis=(0, 1)) for anomaly_map, _ in cases]),
        np.concatenate([label.any(axis=(0, 1)) for _, label in cases]),
    )


def voxels_of(*cases):
    return tuple(np.concatenate([case[part].ravel() for case in cases]) for part in range(2))


def points(curve):
    return sorted(zip(np.round(curve.x, 6).tolist(), np.round(curve.y, 6).tolist(), strict=True))


def distance(curve, x, y):
    """Largest distance from a point of a curve to the nearest of a true curve, along either axis."""
    gaps = np.maximum(np.abs(curve.x[:, None] - x), np.abs(curve.y[:, None] - y))
    return gaps.min(axis=1).max()


# ---------------------------------------------------------------------------------------------------------- few points


@pytest.mark.parametrize("level", ["slice", "pixel"])
def test_every_point_is_scikit_learns(level):
    cases = [draw(seed, (5, 4, 12), levels=4, share=0.02) for seed in (1, 2)]
    found = curves(*cases)
    scores, labels = slices_of(*cases) if level == "slice" else voxels_of(*cases)
    false_positive_rate, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
    roc, pr = found[f"{level}_roc"], found[f"{level}_pr"]
    assert 5 < len(roc.x) < 50
    np.testing.assert_allclose(roc.x, false_positive_rate, atol=1e-6)
    np.testing.assert_allclose(roc.y, recall, atol=1e-6)
    precision, recall, _ = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(pr.x, recall[:-1][::-1], atol=1e-6)  # its last point, (0, 1), belongs to no threshold
    np.testing.assert_allclose(pr.y, precision[:-1][::-1], atol=1e-6)


def test_curves_by_hand():
    """Scores 4, 3 and 1 in the lesion; 3, 2 and 1 outside."""
    anomaly_map = np.array([4, 3, 1, 3, 2, 1]).reshape(1, 1, 6)
    found = curves((anomaly_map, np.array([1, 1, 1, 0, 0, 0]).reshape(1, 1, 6)))
    assert points(found["pixel_roc"]) == [(0, 0), (0, 0.333333), (0.333333, 0.666667), (0.666667, 0.666667), (1, 1)]
    assert found["pixel_pr"].x.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert found["pixel_pr"].y.tolist() == pytest.approx([1, 2 / 3, 1 / 2, 1 / 2])
    assert points(found["slice_roc"]) == points(found["pixel_roc"])  # a voxel a slice


def test_froc_by_hand():
    """Two volumes with a lesion each: components of 9 and 7 are right, 8, 6, 6 and 5 false; 4 is below the threshold"""
    one, other = np.zeros((2, 9, 1, 1))
    one[[0, 2, 4], 0, 0] = 9, 8, 6
    other[[0, 2, 4, 6], 0, 0] = 7, 6, 5, 4
    lesion = np.zeros((9, 1, 1))
    lesion[0] = 1
    curve = curves((one, lesion), (other, lesion), threshold=5)["lesion_froc"]
    assert curve.x.tolist() == [0, 0, 0.5, 0.5, 1.5, 2]
    assert curve.y.tolist() == [0, 0.5, 0.5, 1, 1, 1]


def test_froc_ends_with_the_lesions_that_are_found():
    """The second lesion is below the threshold, and no score finds it."""
    anomaly_map, label = np.zeros((2, 7, 1, 1))
    anomaly_map[[0, 2, 4], 0, 0] = 9, 8, 3
    label[[0, 4]] = 1
    curve = curves((anomaly_map, label), threshold=5)["lesion_froc"]
    assert (curve.x.tolist(), curve.y.tolist()) == ([0, 0, 1], [0, 0.5, 0.5])


def test_froc_of_a_map_that_flags_nothing():
    anomaly_map, label = draw(0, (4, 4, 4))
    curve = curves((anomaly_map, label), threshold=100)["lesion_froc"]
    assert set(curve.x) == set(curve.y) == {0}


def test_infinite_scores():
    """They rank above and below all others, and are ties among themselves."""
    anomaly_map, label = draw(3, (6, 6, 6), levels=2)
    infinite = np.where(anomaly_map == anomaly_map.max(), np.inf, anomaly_map)
    infinite = np.where(anomaly_map == anomaly_map.min(), -np.inf, infinite)
    finite, found = (curves((scores, label), threshold=0.5) for scores in (anomaly_map, infinite))
    assert found.keys() == finite.keys() == set(NAMES)
    for name, curve in found.items():
        assert points(curve) == points(finite[name])


# ----------------------------------------------------------------------------------------------------------- undefined


def test_curves_that_are_not_defined_are_left_out():
    anomaly_map, label = draw(0, (4, 4, 6), share=0.02)
    nothing, everything = np.zeros_like(label), np.ones_like(label)
    assert sorted(curves((anomaly_map, label), threshold=1)) == NAMES
    assert sorted(curves((anomaly_map, label))) == NAMES[1:]
    assert sorted(curves((anomaly_map, nothing), threshold=1)) == []
    assert sorted(curves((anomaly_map, everything), threshold=1)) == ["lesion_froc", "pixel_pr", "slice_pr"]


def test_one_class_of_slices_only():
    anomaly_map, label = draw(0, (8, 8, 3))
    assert label.any(axis=(0, 1)).all()
    assert sorted(curves((anomaly_map, label))) == ["pixel_pr", "pixel_roc", "slice_pr"]


# --------------------------------------------------------------------------------------------------------- many points


@pytest.mark.parametrize(("separation", "share"), [(0, 0.3), (1, 0.001), (4, 0.3)])
def test_thinned_curves(separation, share):
    cases = [draw(seed, (40, 40, 20), separation=separation, share=share) for seed in (1, 2)]
    found = curves(*cases)
    scores, labels = voxels_of(*cases)
    roc, pr = found["pixel_roc"], found["pixel_pr"]
    for curve in (roc, pr):
        assert POINTS / 20 < len(curve.x) == len(curve.y) <= POINTS == 500
    x, y, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert (np.diff(roc.x) >= 0).all()
    assert (np.diff(roc.y) >= 0).all()
    assert distance(roc, x, y) < 1e-3
    assert auc(roc.x, roc.y) == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)

    precision, recall, _ = precision_recall_curve(labels, scores)
    assert distance(pr, recall, precision) < 1e-3
    assert (pr.x[0], pr.y[0]) == pytest.approx((recall[-2], precision[-2]), abs=1e-6)
    assert (pr.x[-1], pr.y[-1]) == pytest.approx((1, labels.mean()), abs=1e-4)
    assert (np.diff(pr.x) >= 0).all()
    steps = np.diff(pr.x, prepend=0) @ pr.y
    assert steps == pytest.approx(average_precision_score(labels, scores), abs=5e-3 if share == 0.001 else 1e-3)
    assert trapezoid(pr.y, pr.x) == pytest.approx(trapezoid(precision[:-1][::-1], recall[:-1][::-1]), abs=1e-3)


def test_thinned_froc_keeps_the_part_that_is_read():
    """Hundreds of false alarms a volume, of which a reader looks at eight."""
    cases = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        places = np.zeros((17, 17, 17), bool)
        places[::2, ::2, ::2] = True  # single voxels that do not touch
        label = places & (rng.random(places.shape) < 0.03)
        cases.append((np.where(places, rng.random(places.shape) + label * rng.random(places.shape), -1), label))
    evaluation = evaluate(*cases, threshold=0)
    curve = curves_of(evaluation.pooled["model"])["lesion_froc"]
    assert len(curve.x) <= POINTS
    assert curve.x[-1] == np.mean([(~label & (anomaly_map >= 0)).sum() for anomaly_map, label in cases]) > 600
    assert curve.y[-1] == 1
    read = float(mean_height(curve.x, curve.y, FROC_PLACES))
    assert read == pytest.approx(evaluation.value("model", "froc_score"), abs=0.01)
