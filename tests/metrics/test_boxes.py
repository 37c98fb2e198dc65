"""The regional criterion of boxes: against the literature's own values, and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from metric_checks import CASES, SMALL, evaluate

from ssmctb_monai.metrics import AnomalyEvaluation, BoxFindings, EvaluationSettings, box_criterion
from ssmctb_monai.metrics.boxes import find_boxes

GOLDEN = Path(__file__).parents[1] / "data/golden/rbdc_tbdc.npz"
ONCE = np.ones((1, 1))


def findings(boxes, regions, tracks):
    """Of boxes that have a score behind their corners."""
    boxes = np.array(boxes, dtype=float).reshape(-1, 6)
    levels = [(score, boxes[boxes[:, 5] >= score, :5]) for score in np.unique(boxes[:, 5])[::-1]]
    return BoxFindings.of(levels, np.array(regions).reshape(-1, 5), np.array(tracks))


def test_golden_values():
    golden = np.load(GOLDEN)
    cases = []
    for video in ("01", "02"):
        tracks = golden[f"{video}/tracks"]
        cases.append(findings(golden[f"{video}/detections"], tracks[:, 1:], tracks[:, 0]))
    frames = np.array([0, golden["frames"]])  # their sum counts
    once = np.ones((1, 2))
    assert box_criterion(cases, frames, "regions", once)[0] == pytest.approx(golden["rbdc"], abs=5e-5)  # four digits
    assert box_criterion(cases, frames, "tracks", once)[0] == pytest.approx(golden["tbdc"], abs=1e-9)


def test_by_hand():
    """Two tracks, of two regions and of one, in ten frames; a box that finds nothing in between."""
    case = findings(
        [[0, 0, 0, 9, 9, 0.9], [5, 0, 0, 9, 9, 0.8], [1, 0, 0, 9, 9, 0.7], [2, 40, 40, 49, 49, 0.6]],
        [[2, 40, 40, 49, 49], [0, 0, 0, 9, 9], [1, 0, 0, 9, 9]],
        [4, 7, 7],
    )
    assert case.targets == {"regions": 3, "tracks": 2}
    np.testing.assert_array_equal(case.thresholds, [0.9, 0.8, 0.7, 0.6])
    np.testing.assert_array_equal(case.regions, [1, 1, 2, 3])
    np.testing.assert_array_equal(case.tracks, [1, 1, 1, 2])
    np.testing.assert_array_equal(case.false_alarms, [0, 1, 1, 1])
    np.testing.assert_array_equal(case.at(np.array([1.0, 0.9, 0.85, 0.65, 0.1]), "regions"), [0, 1, 1, 2, 3])
    # 1/3 up to a tenth of a false alarm a frame, then all
    assert box_criterion([case], np.array([10]), "regions", ONCE)[0] == pytest.approx(0.1 / 3 + 0.9)
    assert box_criterion([case], np.array([10]), "tracks", ONCE)[0] == pytest.approx(0.1 / 2 + 0.9)


@pytest.mark.parametrize(("last", "is_found"), [(9, True), (8, False)])
def test_corners_count(last, is_found):
    """10 of 100 pixels are a tenth, both rows included; 9 are less."""
    case = findings([[3, 0, 0, 0, last, 0.5]], [[3, 0, 0, 9, 9]], [0])
    assert (case.regions[0], case.false_alarms[0]) == (is_found, not is_found)
    assert findings([[2, 0, 0, 9, 9, 0.5]], [[3, 0, 0, 9, 9]], [0]).false_alarms[0] == 1  # another frame


def test_a_box_may_find_several_regions_and_boxes_need_not_share():
    case = findings(
        [[0, 0, 0, 9, 19, 0.9], [0, 0, 0, 9, 19, 0.9]],
        [[0, 0, 0, 9, 9], [0, 0, 10, 9, 19], [0, 30, 0, 39, 9]],
        [1, 2, 3],
    )
    assert (case.regions[0], case.tracks[0], case.false_alarms[0]) == (2, 2, 0)


def test_a_curve_that_turns_back():
    """At the second threshold two false alarms a frame; at the third, where boxes merge, none and nothing is found."""
    regions = [[0, 0, 0, 1, 1]]
    far = [[0, 10 * index, 0, 10 * index + 1, 1] for index in (2, 4)]
    levels = [(0.9, regions), (0.5, regions + far), (0.1, [[0, 0, 0, 50, 50]])]
    case = BoxFindings.of([(score, np.array(boxes)) for score, boxes in levels], np.array(regions), np.array([0]))
    np.testing.assert_array_equal(case.false_alarms, [0, 2, 1])
    np.testing.assert_array_equal(case.regions, [1, 1, 0])
    assert box_criterion([case], np.array([1]), "regions", ONCE)[0] == 1
    assert box_criterion([case], np.array([4]), "regions", ONCE)[0] == 0.5  # from half a false alarm a frame on


def test_of_a_map():
    """An L-shaped lesion over two slices, and a speck; boxes are around components, not the components."""
    shape = (3, 12, 12)
    scores, lesion, inside = np.zeros(shape), np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    lesion[0, :10, 0] = lesion[0, 9, :10] = lesion[1, 9, 9] = lesion[2, 0, 0] = True
    scores[0, 0:3, 5:9] = 0.9  # 12 of the 100 pixels of the L's box, and none of its own
    scores[1, 0, 0] = 0.8
    inside[2, 5, 5], scores[2, 5, 5] = False, 1
    case = find_boxes(scores, inside, lesion, levels=40)
    assert case.targets == {"regions": 3, "tracks": 2}
    place = np.flatnonzero(case.thresholds <= 0.8)[0]
    assert (case.regions[place], case.tracks[place], case.false_alarms[place]) == (1, 1, 1)
    assert case.thresholds[-1] == 0
    assert (case.regions[-1], case.false_alarms[-1]) == (1, 2)  # whole slices


def test_nothing_to_find():
    nothing = np.zeros((2, 5, 5), dtype=bool)
    case = find_boxes(np.random.default_rng(0).random(nothing.shape), ~nothing, nothing, levels=5)
    assert case.targets == {"regions": 0, "tracks": 0}
    assert case.false_alarms.max() > 1
    assert np.isnan(box_criterion([case], np.array([2]), "regions", ONCE)[0])


def test_counted_only_when_asked_for():
    evaluation = AnomalyEvaluation()
    evaluation.add("case", {"model": CASES[0].anomaly_map}, CASES[0].label)
    assert evaluation.cases[0].boxes is None
    for name in ("rbdc_of_boxes", "tbdc_of_boxes"):
        assert np.isnan(evaluation.value("model", name))
        assert evaluation.estimates("model")[name].reason == "the settings left boxes out (box_levels)"
    assert len(evaluate(CASES[:1]).cases[0].boxes.thresholds) <= SMALL.box_levels
    with pytest.raises(ValueError, match="box_levels must be at least 0"):
        EvaluationSettings(box_levels=-1)
