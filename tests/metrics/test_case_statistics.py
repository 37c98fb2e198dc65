"""Statistic of one case: slices, their scores, orientation, voxels and volumes."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from metric_checks import THRESHOLD, make_case

from ssmctb_monai.data.oriented_case import OrientedCase
from ssmctb_monai.metrics import EvaluationSettings
from ssmctb_monai.metrics.case_statistics import CaseStatistics, CaseTruth, views_of

SETTINGS = EvaluationSettings(top_k=2, slab_depth=2, min_lesion_size=1)


def volume(values):
    """Slices along the last axis, each given as its four voxels."""
    return np.array(values, dtype=np.float32).T.reshape(2, 2, -1)


#                 slice 0             slice 1           slice 2           slice 3         slice 4
SCORES = volume([[0.1, 0.2, 0.3, 1], [0.5, 0.25, 0, 0], [0.75, 0.5, 1, 0], [1, 0.5, 2, 3], [9, 9, 9, 9]])
LABEL = volume([[0, 0, 0, 4], [0, 0, 0, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
BRAIN = volume([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def statistics(
    scores=SCORES, label=LABEL, brain=BRAIN, settings=SETTINGS, affine=None, threshold=None, lesion_free=None
):
    case = OrientedCase(
        "case", {"model": scores}, label, brain, patient_id="patient", affine=affine, lesion_free=lesion_free
    )
    return CaseStatistics.of("model", CaseTruth(case, settings), threshold)


def columns(case):
    return {name: column.tolist() for name, column in case.slices.items()}


def assert_same(case, expected):
    """All but the names of two statistics, to the last bit."""
    assert pickle.dumps(plain(case)) == pickle.dumps(plain(expected))


def plain(thing):
    """Nested lists of all that a statistic holds."""
    if hasattr(thing, "__dataclass_fields__"):
        return {name: plain(getattr(thing, name)) for name in thing.__dataclass_fields__}
    if isinstance(thing, dict):
        return {name: plain(value) for name, value in thing.items()}
    return thing.tolist() if isinstance(thing, np.ndarray) else thing


# -------------------------------------------------------------------------------------------------------------- by hand


def test_by_hand():
    """Lesions of slices 0 and 3 lie outside the brain mask, and count; slice 3 has nothing else, slice 4 nothing."""
    case = statistics(threshold=0.5)
    assert columns(case) == {
        "slice": [0, 1, 2],  # slice 3 has one voxel, fewer than top_k
        "relative_height": pytest.approx([0, 1 / 3, 2 / 3]),  # the brain ends with slice 3
        "brain_voxels": [4, 4, 2],
        "lesion_voxels": [1, 0, 1],
        "score": pytest.approx([0.65, 0.375, 0.625]),
    }
    np.testing.assert_array_equal(case.normal.values, np.unique(np.float32([0.1, 0.2, 0.3, 0.5, 0.25, 0, 0, 0.5])))
    assert case.normal.total == 8
    assert case.lesion.values.tolist() == [0.5, 0.75, 1]
    assert case.lesion.weights.tolist() == [0.5, 0.5, 1]  # 0.5 and 0.75 touch by an edge across slices
    assert case.lesion_components == 2
    assert (case.flagged.normal, case.flagged.lesion, case.flagged.normal_slices) == (2, 3, 0)
    assert case.volume_score == pytest.approx(0.65)
    assert (case.case_id, case.patient_id, case.lesion_free) == ("case", "patient", None)


def test_all_slices():
    """As in the SSMCTB paper: every slice counts, one without brain with the lowest score there is."""
    case = statistics(settings=EvaluationSettings(top_k=2, slices="all"))
    assert columns(case) == {
        "slice": [0, 1, 2, 3, 4],
        "relative_height": pytest.approx([0, 1 / 3, 2 / 3, 1, np.nan], nan_ok=True),
        "brain_voxels": [4, 4, 2, 1, 0],
        "lesion_voxels": [1, 0, 1, 1, 0],
        "score": pytest.approx([0.65, 0.375, 0.625, 0.5, -np.inf]),  # mean of the one voxel that there is
    }


def test_slices_with_too_few_brain_voxels_are_left_out():
    for top_k, kept in ((1, [0, 1, 2, 3]), (2, [0, 1, 2]), (3, [0, 1]), (4, [0, 1]), (5, [])):
        for slice_score in ("top_k_mean", "max", "filtered_max"):
            case = statistics(settings=EvaluationSettings(top_k=top_k, slice_score=slice_score))
            assert case.slices["slice"].tolist() == kept
    assert case.volume_score == -np.inf
    assert case.normal.total == 8


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 7])
def test_mean_of_the_highest(top_k):
    expected = []
    for index in range(4):
        inside = ((BRAIN > 0) | (LABEL > 0))[..., index]
        expected.append(np.sort(SCORES[..., index][inside])[-top_k:].mean())
    case = statistics(settings=EvaluationSettings(top_k=top_k, slices="all"))
    np.testing.assert_allclose(case.slices["score"][:4], expected, rtol=1e-6)


def test_highest():
    case = statistics(settings=EvaluationSettings(top_k=2, slice_score="max"))
    assert case.slices["score"].tolist() == [1, 0.5, 0.75]


def test_mean_of_a_slice_ranks_as_its_psnr():
    """Of squared errors."""
    case = statistics(settings=EvaluationSettings(top_k=2, slice_score="mean", slices="all"))
    insides = [((BRAIN > 0) | (LABEL > 0))[..., index] for index in range(4)]
    expected = [SCORES[..., index][inside].mean() for index, inside in enumerate(insides)]
    np.testing.assert_allclose(case.slices["score"], [*expected, -np.inf], rtol=1e-6)
    psnr = 10 * np.log10(1 / np.array(expected))
    assert np.argsort(case.slices["score"][:4]).tolist() == np.argsort(-psnr).tolist()


def test_without_a_brain_mask_every_voxel_counts():
    case = statistics(brain=None)
    assert not case.has_brain
    assert_same(replace(case, has_brain=True), statistics(brain=np.ones_like(BRAIN)))
    assert case.slices["brain_voxels"].tolist() == [4] * 5
    assert case.normal.total + case.lesion.total == 20


@pytest.mark.parametrize("score", [np.nan, np.inf, -1e30])
@pytest.mark.parametrize("slice_score", ["top_k_mean", "max", "filtered_max", "mean"])
def test_what_lies_outside_the_brain_does_not_matter(score, slice_score):
    outside = (BRAIN == 0) & (LABEL == 0)
    settings = EvaluationSettings(top_k=2, slice_score=slice_score, min_lesion_size=1, slices="all")
    changed = np.where(outside, np.float32(score), SCORES)
    assert_same(statistics(changed, settings=settings, threshold=0.3), statistics(settings=settings, threshold=0.3))


def test_a_brain_mask_of_numbers():
    """Positive is brain, as in MONAI; nothing else is."""
    assert_same(statistics(brain=np.where(BRAIN > 0, 0.25, -1)), statistics())


def test_label_values():
    for label in (LABEL > 0, LABEL * 50, LABEL.astype(np.uint8)):
        assert_same(statistics(label=label), statistics())


def test_empty_brain():
    with pytest.raises(ValueError, match="the brain is empty"):
        statistics(label=np.zeros_like(LABEL), brain=np.zeros_like(BRAIN))


def test_lesion_free_region():
    """Of a region, what is brain and no lesion."""
    region = np.ones_like(LABEL)
    region[..., 0] = 0
    case = statistics(lesion_free=region)
    assert case.lesion_free.values.tolist() == [0, 0.25, 0.5]
    assert case.lesion_free.counts.tolist() == [2, 1, 2]


def test_lesion_of_several_components():
    """Weights are 1 / size, by 26 neighbours, whatever the smallest size that counts as a finding."""
    label = np.zeros((5, 5, 5))
    label[0, 0, 0] = label[1, 1, 1] = label[2, 2, 1] = 1
    label[4, 4, 4] = 3
    scores = np.arange(125.0).reshape(5, 5, 5)
    case = statistics(scores, label, None, EvaluationSettings(min_lesion_size=3))
    assert case.lesion_components == 2
    assert case.lesion.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


# ------------------------------------------------------------------------------------------------------ filtered scores


def box_case(seed=0, shape=(40, 32, 6)):
    """A brain that fills a box, and a map that is 0 somewhere in it and outside."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(shape)
    brain[4:33, 3:30, 1:5] = 1
    scores = brain * rng.gamma(0.5, size=shape) ** 3
    scores[10, 10, 1:5] = 0
    return scores.astype(np.float32), (rng.random(shape) < 0.01) * brain, brain


def test_filtered_scores_are_draems():
    """``avg_pool2d`` with a kernel of 21, as in DRAEM's evaluation, then the maximum."""
    scores, label, brain = box_case()
    pooled = F.avg_pool2d(torch.from_numpy(scores).permute(2, 0, 1)[:, None], 21, stride=1, padding=10)
    expected = [pooled[index][0][torch.from_numpy(brain[..., index] > 0)].max() for index in range(1, 5)]
    case = statistics(scores, label, brain, EvaluationSettings(slice_score="filtered_max"))
    np.testing.assert_allclose(case.slices["score"], expected, rtol=1e-5)
    np.testing.assert_allclose(case.slices["score"], pooled[1:5].amax(dim=(1, 2, 3)), rtol=1e-5)


def test_filter_beyond_the_brain():
    """There it sees the lowest score of the brain, so that a constant added to the map adds to the scores."""
    scores, label, brain = box_case()
    settings = EvaluationSettings(slice_score="filtered_max")
    expected = statistics(scores, label, brain, settings).slices["score"]
    for shift in (-3.0, 5.0):
        case = statistics(scores + shift, label, brain, settings)
        np.testing.assert_allclose(case.slices["score"], expected + shift, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- ill scores


@pytest.mark.parametrize("slice_score", ["top_k_mean", "max", "filtered_max", "mean"])
@pytest.mark.parametrize("has_lesion", [False, True])
def test_nan(slice_score, has_lesion):
    scores = SCORES.copy()
    scores[(0, 0, 2) if has_lesion else (0, 0, 1)] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        statistics(scores, settings=EvaluationSettings(slice_score=slice_score))


@pytest.mark.parametrize(("score", "expected"), [(np.inf, np.inf), (-np.inf, 0.5)])
def test_an_infinite_score(score, expected):
    scores = SCORES.copy()
    scores[0, 1, 1] = score  # the second highest of slice 1
    case = statistics(scores, settings=EvaluationSettings(slice_score="max", top_k=2), threshold=0.5)
    assert case.slices["score"][1] == expected
    assert score in case.normal.values
    mean = statistics(scores).slices["score"][1]
    assert mean == (np.inf if score > 0 else 0.25)


@pytest.mark.parametrize("slice_score", ["top_k_mean", "filtered_max", "mean"])
def test_infinite_scores_without_a_mean(slice_score):
    scores = SCORES.copy()
    scores[..., 1] = [[np.inf, -np.inf], [-np.inf, -np.inf]]
    with pytest.raises(ValueError, match="infinite scores have no mean"):
        statistics(scores, settings=EvaluationSettings(slice_score=slice_score, top_k=2))
    statistics(scores, settings=EvaluationSettings(slice_score="max", top_k=2))


# --------------------------------------------------------------------------------------------------------- orientation

CASE = make_case(7, shape=(9, 8, 11), spacing=(1, 2, 1.5))
OBLIQUE = np.array([[0.96, -0.05, 0.1, 7], [0.06, 1.9, -0.1, -3], [-0.1, 0.2, 1.45, 11], [0, 0, 0, 1]])


def stored(array, affine, codes):
    """The same scan stored along other axes, as nibabel does it."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    return nib.apply_orientation(array, turn), affine @ nib.orientations.inv_ornt_aff(turn, array.shape)


@pytest.mark.parametrize("slice_score", ["top_k_mean", "filtered_max", "mean"])
@pytest.mark.parametrize("affine", [CASE.affine, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "RAI", "PSR", "ASL", "SRA", "IPL"])
def test_stored_in_any_orientation(codes, affine, slice_score):
    """A scan in axial, coronal or sagittal storage, from either end, has one statistic."""
    settings = EvaluationSettings(slice_score=slice_score, top_k=3, min_lesion_size=3)
    arrays = [CASE.anomaly_map, CASE.label, CASE.brain]
    expected = statistics(*arrays, settings, affine, THRESHOLD, lesion_free=CASE.brain)
    turned, moved = zip(*(stored(array, affine, codes) for array in arrays), strict=True)
    assert nib.aff2axcodes(moved[0]) == tuple(codes)
    case = statistics(*turned, settings, moved[0], THRESHOLD, lesion_free=turned[2])
    assert case.voxel_volume == pytest.approx(expected.voxel_volume)
    left_out = ("voxel_volume", "slices")
    assert {k: v for k, v in plain(case).items() if k not in left_out} == {
        k: v for k, v in plain(expected).items() if k not in left_out
    }
    for name, column in expected.slices.items():
        np.testing.assert_allclose(case.slices[name], column, rtol=1e-6)
    assert case.flagged.findings.lesions.targets > 0


def test_without_an_affine_the_last_axis_runs_from_the_feet_up():
    arrays = [CASE.anomaly_map, CASE.label, CASE.brain]
    assert_same(statistics(*arrays), statistics(*arrays, affine=np.eye(4)))
    assert statistics(*arrays).slices["slice"][-1] == 9  # of 11 slices, the last is empty


@pytest.mark.parametrize(
    ("affine", "voxel"), [(None, 1), (np.eye(4), 1), (np.diag([-2, 0.5, 3, 1]), 3), (CASE.affine, 3)]
)
def test_volumes_in_ml(affine, voxel):
    case = statistics(affine=affine)
    assert case.voxel_volume == pytest.approx(voxel / 1000)
    assert case.lesion_volume == pytest.approx(3 * voxel / 1000)
    assert case.brain_volume == pytest.approx(11 * voxel / 1000)


def test_volume_of_sheared_voxels():
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0.2, 0], [0, 2, 0.1], [0, 0, 3]]
    assert statistics(affine=affine).voxel_volume == pytest.approx(6e-3)


def test_relative_height_goes_by_the_brain():
    """0 at its lowest slice and 1 at its highest, wherever it lies in the volume; lesions belong to it."""
    for below, above in itertools.product((0, 3), repeat=2):
        padded = [np.pad(array, [(0, 0), (0, 0), (below, above)]) for array in (SCORES, LABEL, BRAIN)]
        case = statistics(*padded)
        np.testing.assert_allclose(case.slices["relative_height"], [0, 1 / 3, 2 / 3])
        assert case.slices["slice"].tolist() == [below, below + 1, below + 2]
    one = statistics(SCORES[..., 1:2], LABEL[..., 1:2], BRAIN[..., 1:2])
    assert one.slices["relative_height"].tolist() == [0]


# --------------------------------------------------------------------------------------------------------------- memory


def test_memory_hardly_grows_with_the_voxels():
    sizes = []
    for side in (60, 120):
        rng = np.random.default_rng(0)
        label = np.zeros((side, side, side), dtype=bool)
        label[5:20, 5:20, 5:20] = True
        scores = rng.random((side, side, side), dtype=np.float32)
        case = statistics(scores, label, None, EvaluationSettings(), threshold=0.999, lesion_free=~label)
        sizes.append(len(pickle.dumps(case)))
    assert sizes[1] < 1.6 * sizes[0]  # of 8 times the voxels
    assert sizes[1] < 2**20 * 1.5


# ---------------------------------------------------------------------------------------------------------------- views


def views(scores=SCORES, label=LABEL, brain=BRAIN, image=None, affine=None, settings=SETTINGS):
    images = None if image is None else {"image": image}
    case = OrientedCase("case", {"model": scores}, label, brain, patient_id="patient", affine=affine, images=images)
    found = views_of(case, CaseStatistics.of("model", CaseTruth(case, settings)), "model")
    return {view.kind: view for view in found}


def test_views_by_hand():
    label = LABEL.copy()
    label[..., 2] = [[1, 1], [0, 0]]
    seen = views(label=label)
    assert list(seen) == ["lesion", "false_alarm"]
    lesion, false_alarm = seen.values()
    assert (lesion.case_id, lesion.method, lesion.slice, false_alarm.slice) == ("case", "model", 2, 1)
    assert (lesion.score, false_alarm.score) == pytest.approx((0.625, 0.375))
    np.testing.assert_array_equal(lesion.plane.scores, SCORES[::-1, ::-1, 2])
    np.testing.assert_array_equal(lesion.plane.label, label[::-1, ::-1, 2] > 0)
    np.testing.assert_array_equal(lesion.plane.brain, ((BRAIN > 0) | (label > 0))[::-1, ::-1, 2])
    assert lesion.plane.image is None
    assert (lesion.plane.sides, lesion.plane.aspect) == ("RLAP", 1)


@pytest.mark.parametrize(
    ("label", "kinds"), [(np.zeros_like(LABEL), ["false_alarm"]), (np.ones_like(LABEL), ["lesion"])]
)
def test_views_that_there_are(label, kinds):
    assert list(views(label=label)) == kinds


def test_the_false_alarm_is_the_slice_without_lesion_that_scores_highest():
    seen = views(CASE.anomaly_map, CASE.label, CASE.brain)
    case = statistics(CASE.anomaly_map, CASE.label, CASE.brain)
    free = case.slices["lesion_voxels"] == 0
    assert seen["false_alarm"].score == case.slices["score"][free].max()
    assert seen["false_alarm"].score > case.slices["score"][free].min()
    assert seen["lesion"].plane.label.sum() == case.slices["lesion_voxels"].max()
    assert seen["lesion"].slice == case.slices["slice"][case.slices["lesion_voxels"].argmax()]


@pytest.mark.parametrize("codes", ["LPS", "PSR"])
def test_views_are_radiological(codes):
    """Axis 0 runs from the patient's right, axis 1 from the front, cut to the brain, whatever the storage."""
    arrays = [CASE.anomaly_map, CASE.label, CASE.brain, np.random.default_rng(0).random(CASE.label.shape)]
    expected = views(*arrays, affine=CASE.affine)
    turned, moved = zip(*(stored(array, CASE.affine, codes) for array in arrays), strict=True)
    for kind, view in views(*turned, affine=moved[0]).items():
        assert view.slice == expected[kind].slice
        assert view.plane.aspect == pytest.approx(2)  # voxels of 1 x 2 mm
        for name in ("scores", "label", "brain", "image"):
            np.testing.assert_array_equal(getattr(view.plane, name), getattr(expected[kind].plane, name))
    lesion = CASE.lesion[::-1, ::-1, expected["lesion"].slice]
    np.testing.assert_array_equal(expected["lesion"].plane.label, lesion)


def test_images_are_scaled_to_the_brain():
    """The darkest and brightest half per cent of the brain are cut off; what lies outside does not matter."""
    image = np.random.default_rng(0).normal(100, 10, CASE.label.shape)
    low, high = np.percentile(image[CASE.inside], [0.5, 99.5])
    view = views(CASE.anomaly_map, CASE.label, CASE.brain, np.where(CASE.inside, image, 1e6))["lesion"]
    expected = np.clip((image[::-1, ::-1, view.slice] - low) / (high - low), 0, 1)
    plane = view.plane
    np.testing.assert_allclose(plane.image[plane.brain], expected[plane.brain], atol=1e-3)
    assert (plane.image[~plane.brain] == 1).all()


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image(value):
    view = views(image=np.full(SCORES.shape, value))["lesion"]
    assert np.isfinite(view.plane.image).all()


def test_views_hold_no_volume():
    """A view that refers to its slice of the volume keeps the whole volume in memory."""
    for view in views(CASE.anomaly_map, CASE.label, CASE.brain, CASE.anomaly_map).values():
        for name in ("scores", "label", "brain", "image"):
            array = getattr(view.plane, name)
            held = array if array.base is None else array.base
            assert held.size == array.size, name
