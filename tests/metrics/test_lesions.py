"""Found lesions and false alarms in volumes small enough to work them out by hand, and against a loop of thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from metric_checks import CASES, MIN_SIZE, THRESHOLD, evaluate, found_at, make_case, scores_of_parts

from ssmctb_monai.metrics.lesions import TOUCHING, TOUCHING_IN_SLICE, components, find_lesions
from ssmctb_monai.metrics.ranking import mean_height

SHAPE = (6, 20, 20)  # slices, height, width


def empty():
    return np.zeros(SHAPE, dtype=bool)


def find(anomaly_map, lesion, min_size=1, threshold=0.5):
    return find_lesions(anomaly_map, np.ones(SHAPE, dtype=bool), lesion, threshold, min_size)


def assert_detections(detections, targets, found, false_alarms):
    assert detections.targets == targets
    np.testing.assert_allclose(np.sort(detections.found), found, rtol=1e-6)
    np.testing.assert_allclose(np.sort(detections.false_alarms), false_alarms, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- components


def corner_pair():
    """Two voxels that touch at a corner of the cube, and two that touch at an edge within a slice."""
    mask = np.zeros((4, 6, 6), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    mask[3, 4, 4] = mask[3, 5, 5] = True
    return mask


def test_components_by_26_neighbours():
    labels = components(corner_pair(), min_size=1)
    assert labels.max() == 2
    assert labels[0, 0, 0] == labels[1, 1, 1] == 1
    assert labels[3, 4, 4] == labels[3, 5, 5] == 2
    assert (labels > 0).sum() == 4
    assert TOUCHING.sum() == 27


def test_regions_by_8_neighbours_of_a_slice():
    labels = components(corner_pair(), 1, TOUCHING_IN_SLICE)
    assert labels.max() == 3
    assert labels[0, 0, 0] != labels[1, 1, 1]
    assert labels[3, 4, 4] == labels[3, 5, 5]
    assert TOUCHING_IN_SLICE.sum() == 9


@pytest.mark.parametrize(("min_size", "count"), [(1, 3), (2, 2), (3, 2), (4, 1), (5, 1), (6, 0)])
def test_small_components_are_left_out(min_size, count):
    """Components of 3, 1 and 5 voxels; those that remain are numbered from 1 on."""
    mask = empty()
    mask[0, 0, :3] = mask[2, 4, 4] = mask[4, 10, 5:10] = True
    labels = components(mask, min_size)
    assert sorted(set(labels.ravel())) == list(range(count + 1))
    assert (labels > 0).sum() == sum(size for size in (3, 1, 5) if size >= min_size)


def test_components_of_nothing():
    assert not components(empty(), 1).any()


# ------------------------------------------------------------------------------------------------------------- lesions


@pytest.mark.parametrize(("fragments", "expected"), [(0, []), (1, []), (2, [0.7]), (3, [0.8])])
def test_a_lesion_hit_by_fragments(fragments, expected):
    """60 voxels: fragments of 3 cover a twentieth each, so that it takes two; found at the score of the second."""
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[2, 5:8, :20] = True
    for index, score in enumerate([0.9, 0.7, 0.8][:fragments]):
        scores[2, 5:8, 6 * index] = score
        scores[2, 5, 6 * index] = 0.6  # a component has its highest score
    findings = find(scores, lesion)
    assert_detections(findings.lesions, 1, expected, [])


def test_fragments_together_just_below_a_tenth():
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[2, 5:8, :20] = True
    scores[2, 5, [0, 2, 4, 6, 8]] = 0.9
    assert_detections(find(scores, lesion).lesions, 1, [], [])
    scores[2, 7, 19] = 0.6
    assert_detections(find(scores, lesion).lesions, 1, [0.6], [])


@pytest.mark.parametrize(("lesion_voxels", "is_right"), [(40, True), (39, False)])
def test_a_giant_component(lesion_voxels, is_right):
    """400 flagged voxels cover a lesion, but find it only if at least a tenth of them is lesion."""
    lesion, scores = empty(), np.zeros(SHAPE)
    scores[3] = 0.6
    scores[3, 0, 0] = 0.75
    lesion[3].flat[:lesion_voxels] = True
    lesions = find(scores, lesion).lesions
    assert_detections(lesions, 1, [0.75] if is_right else [], [] if is_right else [0.75])


def test_a_component_that_is_right_by_several_lesions():
    """Two lesions of 20 voxels are a tenth of it together, and both are found."""
    lesion, scores = empty(), np.zeros(SHAPE)
    scores[3] = 0.6
    lesion[3, 0] = lesion[3, 10] = True
    assert_detections(find(scores, lesion).lesions, 2, [0.6, 0.6], [])


def test_wrong_components_do_not_cover():
    """A lesion is not found by what is mostly no lesion, though it covers all of it."""
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[3, 0, :10] = True
    scores[3, :6] = 0.6
    assert_detections(find(scores, lesion).lesions, 1, [], [0.6])


def test_a_small_lesion_is_neither_target_nor_false_alarm():
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[1, 2, 2:6] = True  # 4 voxels, too few
    lesion[4, 10, :5] = True
    scores[1, 2, 1:7] = 0.9  # 6 flagged voxels, 4 of them lesion
    scores[1, 15, 1:6] = 0.8  # far from any lesion
    findings = find(scores, lesion, min_size=5)
    assert_detections(findings.lesions, 1, [], [0.8])
    assert_detections(findings.regions, 1, [], [0.8])
    assert_detections(findings.tracks, 1, [], [0.8])


def test_small_flagged_components_are_dropped():
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[1, 2, :6] = True
    scores[1, 2, :4] = 0.9
    scores[4, 2, :4] = 0.9
    for min_size, found in ((4, [0.9]), (5, [])):
        findings = find(scores, lesion, min_size)
        assert_detections(findings.lesions, 1, found, found)
        assert_detections(findings.regions, 1, found, found)


def test_the_threshold_itself_is_flagged():
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[1, 2, :6] = True
    scores[1, 2, :6] = 0.5
    assert_detections(find(scores, lesion, threshold=0.5).lesions, 1, [0.5], [])
    assert_detections(find(scores, lesion, threshold=np.nextafter(0.5, 1)).lesions, 1, [], [])


def test_voxels_outside_do_not_count():
    lesion, scores, inside = empty(), np.full(SHAPE, 0.9), empty()
    inside[2, :2] = lesion[2, 0] = True
    findings = find_lesions(scores, inside, lesion, 0.5, 1)
    assert_detections(findings.lesions, 1, [0.9], [])
    assert_detections(findings.regions, 1, [0.9], [])


def test_components_by_the_26_neighbours():
    """A diagonal chain of five is one component in each mask, and so are found and flagged in one piece."""
    lesion, scores = empty(), np.zeros(SHAPE)
    for index in range(5):
        lesion[index, index, index] = True
        scores[index, 10 + index, index] = 0.6
    findings = find(scores, lesion, min_size=5)
    assert_detections(findings.lesions, 1, [], [0.6])
    assert_detections(findings.regions, 5, [], 5 * [0.6])
    assert_detections(findings.tracks, 1, [], 5 * [0.6])


@pytest.mark.parametrize("anomaly_map", [np.zeros(SHAPE), np.ones(SHAPE)])
def test_nothing_to_find(anomaly_map):
    findings = find(anomaly_map, empty())
    false_alarms = [1.0] * int(anomaly_map.max())
    assert_detections(findings.lesions, 0, [], false_alarms)
    assert_detections(findings.regions, 0, [], len(anomaly_map) * false_alarms)
    assert_detections(findings.tracks, 0, [], len(anomaly_map) * false_alarms)


# --------------------------------------------------------------------------------------------------- regions and tracks


@pytest.mark.parametrize(("flagged", "is_found"), [(1, False), (2, True), (20, True)])
def test_iou_of_exactly_a_tenth_within(flagged, is_found):
    """A region of 20 voxels, of which 2 are a tenth."""
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[2, 3] = True
    scores[2, 3, :flagged] = 0.8
    assert_detections(find(scores, lesion).regions, 1, [0.8] * is_found, [0.8] * (not is_found))


@pytest.mark.parametrize(("rows", "is_found"), [(10, True), (11, False)])
def test_iou_of_exactly_a_tenth_around(rows, is_found):
    """20 lesion voxels in 200 or 220 flagged ones; as components they are right with a tenth of lesion, too."""
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[2, 0] = True
    scores[2, :rows] = 0.8
    findings = find(scores, lesion)
    for detections in (findings.lesions, findings.regions, findings.tracks):
        assert_detections(detections, 1, [0.8] * is_found, [0.8] * (not is_found))


def test_fragments_do_not_find_a_region_together():
    """Each must overlap by itself, other than lesions; those that do not are false alarms."""
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[2, 3:6] = True
    scores[2, 3:5, [0, 2]] = 0.8  # 2 x 2 of 60 voxels
    scores[2, 3:5, 10:13] = 0.7  # 6 of 60
    findings = find(scores, lesion)
    assert_detections(findings.regions, 1, [0.7], [0.8, 0.8])
    assert_detections(findings.lesions, 1, [0.7], [])


def test_a_region_has_the_highest_score_of_its_partners_and_its_own_slice():
    """The component's highest score is in another slice; a second partner scores lower."""
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[2:4, 3] = True
    scores[2, 3, :10] = 0.6
    scores[3, 3, :10] = 0.9
    scores[2, 3, 12:16] = 0.55
    findings = find(scores, lesion)
    assert_detections(findings.lesions, 1, [0.9], [])
    assert_detections(findings.regions, 2, [0.6, 0.9], [])
    assert_detections(findings.tracks, 1, [0.9], [])  # one of two is a tenth


@pytest.mark.parametrize(("depth", "needed"), [(10, 1), (11, 2), (20, 2), (21, 3)])
def test_a_track_is_found_by_a_tenth_of_its_regions(depth, needed):
    """Found at the score of the least one that it takes."""
    shape = (24, 4, 4)
    lesion, scores = np.zeros(shape, dtype=bool), np.zeros(shape)
    lesion[:depth, 1, 1] = True
    for found, score in enumerate([0.7, 0.9, 0.8]):
        scores[5 * found, 1, 1] = score
        findings = find_lesions(scores, np.ones(shape, dtype=bool), lesion, 0.5, 1)
        by_score = sorted([0.7, 0.9, 0.8][: found + 1], reverse=True)
        expected = by_score[needed - 1 : needed]
        if depth > 5 * found:
            assert_detections(findings.tracks, 1, expected, [])
            assert_detections(findings.regions, depth, sorted(by_score), [])


def test_tracks_have_the_false_alarms_of_the_regions():
    lesion, scores = empty(), np.zeros(SHAPE)
    lesion[1:3, 3] = True
    scores[1, 3] = 0.9
    scores[2, 10, :4] = scores[4, 10, :4] = 0.7  # not connected: three components in all
    findings = find(scores, lesion)
    assert_detections(findings.regions, 2, [0.9], [0.7, 0.7])
    assert_detections(findings.tracks, 1, [0.9], [0.7, 0.7])


# ------------------------------------------------------------------------------------------------------------- in order


def test_free_response_counts_components_in_the_order_of_their_highest_score():
    """Found at 0.9 and 0.6 of three lesions, false alarms at 0.8, 0.7, 0.55: one volume, by hand."""
    lesion, scores = empty(), np.zeros(SHAPE)
    for index, (place, score) in enumerate([(0, 0.9), (2, 0.6), (4, 0)]):
        lesion[place, 2 + 6 * index, :10] = True
        scores[place, 2 + 6 * index, :9] = score and 0.52
        scores[place, 2 + 6 * index, 4] = score
    for place, score in [(1, 0.8), (3, 0.7), (5, 0.55)]:
        scores[place, 19, 10:15] = 0.51
        scores[place, 19, 12] = score
    findings = find(scores, lesion)
    assert_detections(findings.lesions, 3, [0.6, 0.9], [0.55, 0.7, 0.8])
    x, y = np.array([0, 0, 1, 2, 2, 3]), np.array([0, 1, 1, 1, 2, 2]) / 3
    expected = mean_height(x, y, (0.25, 0.5, 1, 2, 4, 8))
    assert expected == pytest.approx((1 + 1 + 1 + 2 + 2 + 2) / 18)
    evaluation = evaluate([])
    volume = {"model": np.moveaxis(scores, 0, -1)}
    evaluation.add("case", volume, np.moveaxis(lesion, 0, -1))
    assert evaluation.value("model", "froc_score") == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(16))
def test_against_a_loop_over_thresholds(seed):
    """At every score, the same number of found targets and false alarms as with all below it wiped out."""
    min_size, threshold = (1, 4)[seed // 4 % 2], (0.2, 0.5)[seed // 8]
    case = make_case(seed, lesion_share=0.04 + 0.03 * (seed % 4), separation=0.4 + 0.3 * (seed % 3))
    findings = find_lesions(
        *(np.moveaxis(a, -1, 0) for a in (case.anomaly_map, case.inside, case.lesion)), threshold, min_size
    )
    scores = scores_of_parts(case, threshold, min_size)
    assert len(scores) > 3
    for score in scores:
        expected = found_at(case, score, threshold, min_size)
        for kind, numbers in expected.items():
            detections = getattr(findings, kind)
            seen = [(detections.found >= score).sum(), (detections.false_alarms >= score).sum(), detections.targets]
            np.testing.assert_array_equal(seen, numbers, err_msg=f"{kind} at {score}")


def test_the_random_volumes_have_something_of_everything():
    totals = {kind: sum(found_at(case, THRESHOLD)[kind] for case in CASES) for kind in ("lesions", "regions", "tracks")}
    for found, false_alarms, targets in totals.values():
        assert 0 < found < targets
        assert false_alarms > 0
    assert MIN_SIZE > 1
