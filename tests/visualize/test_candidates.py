"""Candidates in volumes small enough to work them out by hand, and against SciPy's slow way."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from ssmctb_monai.metrics.lesions import find_lesions
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.visualize.candidates import Candidate, find_candidates

SHAPE = (12, 10, 8)
OBLIQUE = np.array([[0.0, -1.5, 0.2, 30], [2.0, 0.1, 0, -40], [0, 0.3, 3.0, 5], [0, 0, 0, 1]])


def test_a_candidate_by_hand():
    scores = np.zeros(SHAPE, dtype=np.float32)
    scores[2:5, 3, 1:5] = 0.5
    scores[4, 3, 2] = 0.75
    affine = np.array([[2.0, 0, 0, 90], [0, 0, 3.0, -10], [0, 1.5, 0, 4], [0, 0, 0, 1]])
    (found,) = find_candidates(scores, 0.5, affine)
    # 2 * 4 + 90, 3 * 2 - 10, 1.5 * 3 + 4; twelve voxels of 9 mm³
    assert found == Candidate(0.75, pytest.approx(0.108), (4, 3, 2), (98.0, -4.0, 8.5))
    plain = [found.score, found.volume, *found.voxel, *found.position]
    assert [type(number) for number in plain] == [float] * 2 + [int] * 3 + [float] * 3


def test_voxels_that_touch_at_a_corner_are_one_candidate():
    scores = np.zeros(SHAPE)
    scores[:2, :2, :2] = scores[2:4, 2:4, 2:4] = 0.9
    scores[8:10, :2, :2] = 0.9  # apart
    assert [item.volume for item in find_candidates(scores, 0.9, np.eye(4), min_size=1)] == [0.016, 0.008]


@pytest.mark.parametrize(("size", "count"), [(9, 0), (10, 1)])
def test_the_smallest_candidate_is_the_smallest_lesion_of_an_evaluation(size, count):
    scores = np.zeros(SHAPE)
    scores[:size, 4, 4] = 0.6
    assert EvaluationSettings().min_lesion_size == 10
    assert len(find_candidates(scores, 0.5, np.eye(4))) == count
    assert len(find_candidates(scores, 0.5, np.eye(4), min_size=9)) == 1


def test_the_highest_score_comes_first_then_the_largest():
    scores = np.zeros(SHAPE)
    for column, (score, size) in enumerate([(0.6, 3), (0.8, 2), (0.7, 9), (0.8, 5), (0.9, 1)]):
        scores[:size, 2 * column, 0] = score
    found = find_candidates(scores, 0.6, np.diag([10.0, 10, 10, 1]), min_size=2)
    assert [item.score for item in found] == [0.8, 0.8, 0.7, 0.6]
    assert [item.volume for item in found] == pytest.approx([5, 2, 9, 3])


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_first_of_equally_high_voxels(order):
    scores = np.zeros(SHAPE, order=order)
    scores[3:6, 2:5, 1:4] = 0.5
    for voxel in [(5, 2, 1), (4, 4, 3), (4, 3, 2), (5, 4, 3)]:
        scores[voxel] = 0.7
    scores[0, 0, 0] = 0.7  # too small
    (found,) = find_candidates(scores, 0.5, OBLIQUE)
    assert found.voxel == (4, 3, 2)
    np.testing.assert_allclose(found.position, (OBLIQUE @ [4, 3, 2, 1])[:3])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_only_inside_of_the_brain(dtype):
    """The mask cuts a component in two, and its highest voxel lies outside."""
    scores = np.zeros(SHAPE)
    scores[:, 4, 4] = 0.5
    scores[5, 4, 4], scores[8, 4, 4] = 1, 0.6
    inside = np.full(SHAPE, 1, dtype=dtype)
    inside[5] = 0
    found = find_candidates(scores, 0.5, np.eye(4), inside, min_size=1)
    assert [(item.score, item.voxel, item.volume) for item in found] == [
        (0.6, (8, 4, 4), 0.006),
        (0.5, (0, 4, 4), 0.005),
    ]


def test_scores_that_are_no_numbers_or_negative():
    scores = np.full(SHAPE, np.nan)
    assert find_candidates(scores, -10, np.eye(4)) == []
    scores[:3, :2, :2] = -3
    scores[1, 1, 1] = -2
    (found,) = find_candidates(scores, -3, np.eye(4))
    assert (found.score, found.voxel, found.volume) == (-2, (1, 1, 1), 0.012)
    (found,) = find_candidates(np.where(scores == -2, np.inf, scores), -3, np.eye(4))
    assert found.score == np.inf


def test_nothing_over_the_threshold():
    assert find_candidates(np.zeros(SHAPE), 0.1, np.eye(4)) == []
    assert find_candidates(np.ones(SHAPE), 0.1, np.eye(4), np.zeros(SHAPE, dtype=bool)) == []


def test_a_threshold_that_single_precision_rounds():
    """The evaluation flags these voxels too: 0.1 as float32 is more than 0.1 as float64, 0.3 is more, 0.7 is less."""
    for threshold in (0.1, 0.3, 0.7):
        assert len(find_candidates(np.full(SHAPE, threshold, dtype=np.float32), threshold, np.eye(4))) == 1


@pytest.mark.parametrize("levels", [8, 64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_like_scipy_and_the_evaluation(levels, dtype):
    """Random maps with many equal scores; labels by SciPy, each looked at by itself."""
    generator = np.random.default_rng(levels)
    shape = (50, 40, 30)
    noise = ndimage.gaussian_filter(generator.standard_normal(shape), 0.8)
    scores = (np.round(noise * levels) / levels).astype(dtype)
    inside = generator.random(shape) < 0.9
    numbers, count = ndimage.label(inside & (scores >= 0.25), np.ones((3, 3, 3)))
    expected = []
    for number in range(1, count + 1):
        voxels = np.argwhere(numbers == number)  # in C order
        if len(voxels) >= 10:
            values = scores[tuple(voxels.T)]
            peak = voxels[values.argmax()]
            expected.append(
                (values.max(), len(voxels) * 9.12 / 1000, tuple(peak), nib.affines.apply_affine(OBLIQUE, peak))
            )
    found = find_candidates(scores, 0.25, OBLIQUE, inside)
    assert len(found) > 15
    assert [(-item.score, -item.volume) for item in found] == sorted((-item.score, -item.volume) for item in found)
    found.sort(key=lambda item: item.voxel)
    expected.sort(key=lambda item: item[2])
    assert abs(np.linalg.det(OBLIQUE[:3, :3])) == pytest.approx(9.12)
    for item, (score, volume, voxel, position) in zip(found, expected, strict=True):
        assert (item.score, item.voxel) == (score, voxel)
        np.testing.assert_allclose([item.volume, *item.position], [volume, *position], rtol=1e-12)
    flagged = find_lesions(scores, inside, np.zeros(shape, dtype=bool), 0.25, 10).lesions.false_alarms
    assert sorted(flagged) == sorted(item.score for item in found)


@pytest.mark.parametrize(("shape", "mask"), [((1, *SHAPE), None), (SHAPE[:2], None), (SHAPE, SHAPE[::-1])])
def test_no_volume(shape, mask):
    inside = None if mask is None else np.ones(mask, dtype=bool)
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        find_candidates(np.ones(shape), 0.5, np.eye(4), inside)


def test_the_arrays_stay_as_they_are():
    scores, inside = np.random.default_rng(0).random(SHAPE), np.ones(SHAPE, dtype=np.uint8)
    before = scores.copy()
    scores.flags.writeable = inside.flags.writeable = False
    assert find_candidates(scores, 0.5, np.eye(4), inside)
    np.testing.assert_array_equal(scores, before)
