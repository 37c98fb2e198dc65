"""Statistics of one case, from which all figures follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from ssmctb_monai.metrics import CaseStatistics
from ssmctb_monai.metrics.case_statistics import BINS, LARGEST_LOGIT, pixel_auroc, pixel_average_precision, slice_auroc


def volume(values):
    """Slices along the last axis, each given as four voxels."""
    return torch.tensor(values, dtype=torch.float32).T.reshape(1, 2, 2, -1)


#                 slice 0           slice 1           slice 2           slice 3
SCORES = volume([[0.1, 0.2, 0.3, 1], [0.5, 0.25, 0, 0], [0.75, 0.5, 1, 0], [1, 1, 1, 1]])
LABEL = volume([[0, 0, 0, 4], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
BRAIN = volume([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def bin_of(score):
    """Equal bins of the logit; 0 is in the first, 1 in the last."""
    if score in (0, 1):
        return score * (BINS - 1)
    return int((math.log(score / (1 - score)) / LARGEST_LOGIT + 1) * BINS / 2)


def test_by_hand():
    """Slice 0 has its lesion and its highest score outside the brain; slice 3 has one brain voxel only."""
    case = CaseStatistics.of(SCORES, LABEL, BRAIN, top_k=2)
    np.testing.assert_allclose(case.slice_scores, [0.25, 0.375, 0.625], rtol=1e-6)
    assert case.slice_lesion.tolist() == [False, False, True]
    assert (len(case.normal), len(case.lesion)) == (BINS, BINS)
    normal = {index: int(case.normal[index]) for index in case.normal.nonzero()[0]}
    expected = np.unique([bin_of(s) for s in (0.1, 0.2, 0.3, 0.5, 0.25, 0, 0, 0.5)], return_counts=True)
    assert normal == dict(zip(*map(np.ndarray.tolist, expected), strict=True))
    assert {index: int(case.lesion[index]) for index in case.lesion.nonzero()[0]} == {
        bin_of(0.75): 1,
        BINS - 1: 1,  # a score of 1 is in the last bin
    }


def test_figures_by_hand():
    cases = [CaseStatistics.of(SCORES, LABEL, BRAIN, top_k=2)]
    assert slice_auroc(cases) == 1  # 0.625 above 0.25 and 0.375
    assert pixel_auroc(cases) == 1
    assert pixel_average_precision(cases) == 1


def test_slices_with_too_few_brain_voxels_are_left_out():
    brain_voxels = [4, 4, 2, 1]
    for top_k in (1, 2, 3, 4):
        case = CaseStatistics.of(SCORES, LABEL, BRAIN.clone().index_fill_(3, torch.tensor(0), 1), top_k)
        kept = [count >= top_k for count in brain_voxels]
        assert len(case.slice_scores) == len(case.slice_lesion) == sum(kept)
        assert case.slice_lesion.tolist() == [
            lesion for lesion, used in zip([True, False, True, True], kept, strict=True) if used
        ]


def test_top_k_1_is_the_maximum_and_more_than_a_slice_leaves_none():
    np.testing.assert_allclose(CaseStatistics.of(SCORES, LABEL, BRAIN, 1).slice_scores, [0.3, 0.5, 0.75, 1])
    case = CaseStatistics.of(SCORES, LABEL, BRAIN, top_k=5)
    assert case.slice_scores.shape == case.slice_lesion.shape == (0,)
    assert case.normal.sum() == 8
    assert math.isnan(slice_auroc([case]))


def test_what_lies_outside_the_brain_does_not_matter():
    outside = BRAIN == 0
    expected = CaseStatistics.of(SCORES, LABEL, BRAIN, 2)
    for score, label in ((float("nan"), 1), (7.0, 0), (-3.0, 1)):
        case = CaseStatistics.of(SCORES.masked_fill(outside, score), LABEL.masked_fill(outside, label), BRAIN, 2)
        for name in ("normal", "lesion", "slice_scores", "slice_lesion"):
            np.testing.assert_array_equal(getattr(case, name), getattr(expected, name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_of_the_map(dtype):
    exact = (SCORES * 4).round() / 4  # in every dtype
    expected = CaseStatistics.of(exact, LABEL, BRAIN, 2)
    case = CaseStatistics.of(exact.to(dtype), LABEL.bool(), BRAIN.byte(), 2)
    np.testing.assert_array_equal(case.normal, expected.normal)
    np.testing.assert_allclose(case.slice_scores, expected.slice_scores)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.01, 1.01])
def test_ill_scores(score):
    scores = SCORES.clone()
    scores[0, 0, 0, 1] = score
    with pytest.raises(ValueError, match="NaN or values outside"):
        CaseStatistics.of(scores, LABEL, BRAIN, 2)


def test_empty_brain():
    with pytest.raises(ValueError, match="empty"):
        CaseStatistics.of(SCORES, LABEL, torch.zeros_like(BRAIN), 2)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_other_shapes(index):
    tensors = [SCORES, LABEL, BRAIN]
    tensors[index] = tensors[index][..., :-1]
    with pytest.raises(ValueError, match="shape"):
        CaseStatistics.of(*tensors)


# ------------------------------------------------------------------------------------------------------- against scores


def random_case(seed, shape=(1, 50, 50, 40), separation=1.0, centre=-1.0):
    """Scores as a network gives them, by a sigmoid."""
    rng = np.random.default_rng(seed)
    label = rng.random(shape) < 0.05
    logits = rng.normal(centre + separation * label, 1.0)
    brain = rng.random(shape) < 0.9
    scores = 1 / (1 + np.exp(-logits))
    return torch.from_numpy(scores.astype(np.float32)), torch.from_numpy(label), torch.from_numpy(brain)


@pytest.mark.parametrize("separation", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("centre", [-3.0, 0.0, 3.0])
def test_agreement_with_scikit_learn(separation, centre):
    scores, label, brain = random_case(0, separation=separation, centre=centre)
    cases = [CaseStatistics.of(scores, label, brain)]
    truth, values = label[brain].numpy(), scores[brain].numpy()
    assert pixel_auroc(cases) == pytest.approx(roc_auc_score(truth, values), abs=1e-4)
    assert pixel_average_precision(cases) == pytest.approx(average_precision_score(truth, values), abs=1e-4)


def test_agreement_with_scikit_learn_for_a_confident_network():
    """Trained networks give most scores within 1e-4 of 0 or of 1; their order there decides the figures."""
    rng = np.random.default_rng(0)
    label = rng.random((1, 50, 50, 40)) < 0.05
    logits = np.where(label, rng.normal(6, 6, label.shape), rng.normal(-3, 4, label.shape))
    scores = torch.sigmoid(torch.from_numpy(logits.astype(np.float32)))
    cases = [CaseStatistics.of(scores, torch.from_numpy(label), torch.ones_like(scores))]
    truth, values = label.ravel(), scores.numpy().ravel()
    assert pixel_auroc(cases) == pytest.approx(roc_auc_score(truth, values), abs=1e-4)
    assert pixel_average_precision(cases) == pytest.approx(average_precision_score(truth, values), abs=1e-4)


def test_heavily_tied_scores():
    scores, label, brain = random_case(1, separation=2)
    scores = (scores * 5).round() / 5
    cases = [CaseStatistics.of(scores, label, brain)]
    truth, values = label[brain].numpy(), scores[brain].numpy()
    assert pixel_auroc(cases) == pytest.approx(roc_auc_score(truth, values), abs=1e-9)
    assert pixel_average_precision(cases) == pytest.approx(average_precision_score(truth, values), abs=1e-9)


def test_several_cases_are_pooled_exactly():
    tensors = [random_case(seed, (1, 12, 12, 20), separation=seed) for seed in range(4)]
    joined = CaseStatistics.of(*(torch.cat(parts, dim=-1) for parts in zip(*tensors, strict=True)))
    cases = [CaseStatistics.of(*case) for case in tensors]
    np.testing.assert_array_equal(sum(case.normal for case in cases), joined.normal)
    np.testing.assert_array_equal(sum(case.lesion for case in cases), joined.lesion)
    for figure in (pixel_auroc, pixel_average_precision, slice_auroc):
        assert figure(cases) == pytest.approx(figure([joined]), nan_ok=True)
        assert figure(cases[::-1]) == pytest.approx(figure(cases), nan_ok=True)


def test_slice_auroc_against_scikit_learn():
    rng = np.random.default_rng(0)
    cases, scores, lesion = [], [], []
    for seed in range(3):
        anomaly_map, label, brain = random_case(seed, (1, 12, 12, 20))
        label[..., rng.random(20) < 0.6] = False
        anomaly_map = (anomaly_map * 10).round() / 10  # ties
        cases.append(CaseStatistics.of(anomaly_map, label, brain, top_k=3))
        for index in range(20):
            values = anomaly_map[0, ..., index][brain[0, ..., index]].sort().values[-3:]
            scores.append(float(values.mean()))
            lesion.append(bool((label & brain)[..., index].any()))
    assert 10 < sum(lesion) < 50
    assert slice_auroc(cases) == pytest.approx(roc_auc_score(lesion, np.float32(scores)), abs=1e-9)


def test_memory_does_not_grow_with_the_volume():
    sizes = [CaseStatistics.of(*random_case(0, (1, size, size, 10))).normal.nbytes for size in (10, 60)]
    assert sizes[0] == sizes[1]


def test_without_lesion():
    scores, label, brain = random_case(0, (1, 8, 8, 5))
    cases = [CaseStatistics.of(scores, torch.zeros_like(label), brain)]
    for figure in (pixel_auroc, pixel_average_precision, slice_auroc):
        assert math.isnan(figure(cases))
