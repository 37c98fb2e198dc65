"""Thresholds from lesion-free voxels, and their file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ssmctb_monai.metrics import LabelFreeThreshold, load_thresholds, save_thresholds
from ssmctb_monai.metrics.score_counts import ScoreCounts


def parts(*scores):
    return [ScoreCounts.of(np.array(part, dtype=np.float32)) for part in scores]


def test_by_hand():
    """Of 200 voxels of two cases two may be flagged; 99 occurs twice. The third case has no lesion-free region."""
    threshold = LabelFreeThreshold.of(parts(range(100), range(1, 101), []))
    assert threshold == LabelFreeThreshold(100, 0.01, "200 voxels in lesion-free regions of 2 cases", 51)


def test_ties_are_not_flagged_in_excess():
    """99 occurs twice and 100 once: three of 200 are more than a hundredth."""
    scores = range(100), range(1, 101)
    at = {rate: LabelFreeThreshold.of(parts(*scores), rate).value for rate in (0.005, 0.01, 0.015, 0.5)}
    assert at == {0.005: 100, 0.01: 100, 0.015: 99, 0.5: 51}


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5])
def test_rate_on_many_voxels(rate):
    rng = np.random.default_rng(0)
    scores = [rng.gamma(2, 1 + index, size=60_000) for index in range(4)]
    threshold = LabelFreeThreshold.of(parts(*scores), rate)
    reached = (np.concatenate(scores).astype(np.float32) >= threshold.value).mean()
    assert reached == pytest.approx(rate, rel=1e-3)
    assert threshold.false_positive_rate == rate


def test_constant_scores():
    """None is flagged, as any threshold at or below would flag all."""
    threshold = LabelFreeThreshold.of(parts([0.25] * 10, [0.25] * 5))
    assert 0.25 < threshold.value < 0.2500001


def test_more_infinite_scores_than_may_be_flagged():
    """No number is above them."""
    with pytest.raises(ValueError, match="finite"):
        LabelFreeThreshold.of(parts([0, 1, np.inf, np.inf]), 0.25)
    assert LabelFreeThreshold.of(parts([0, 1, 2, np.inf]), 0.5).value == 2


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_rates_outside_the_range(rate):
    with pytest.raises(ValueError, match="false_positive_rate must be in"):
        LabelFreeThreshold.of(parts([1, 2]), rate)


@pytest.mark.parametrize("scores", [[], [[]], [[], []]])
def test_no_voxel(scores):
    with pytest.raises(ValueError, match="no lesion-free region"):
        LabelFreeThreshold.of(parts(*scores))


def test_scale_of_maps():
    threshold = LabelFreeThreshold(0.2, 0.01, "made", 0.1)
    scaled = threshold.scale(torch.tensor([0.0, 0.1, 0.2]))
    assert scaled.tolist() == pytest.approx([0, threshold.on_scale().median, threshold.on_scale().value])
    assert threshold.on_scale().scale(scaled).tolist() == pytest.approx(scaled.tolist())  # it is there already
    for median in (0.0, 0.2, 0.6):
        threshold = LabelFreeThreshold(0.2, 0.01, "made", median)
        assert threshold.on_scale().median == pytest.approx(float(threshold.scale(torch.tensor(median))))
    assert LabelFreeThreshold(0.2, 0.01, "made").on_scale().median is None


# ----------------------------------------------------------------------------------------------------------------- file


def test_file(tmp_path):
    path = tmp_path / "thresholds.json"
    thresholds = {
        "model": LabelFreeThreshold(float(np.float32(0.1)), 0.01, "5 cases"),
        "flair": LabelFreeThreshold(1234.5678901234567, None, "given"),
    }
    save_thresholds(thresholds, path)
    assert load_thresholds(path) == thresholds
    assert load_thresholds(str(path))["model"].value == np.float32(0.1)
    assert json.loads(path.read_text())["flair"] == {
        "value": 1234.5678901234567,
        "false_positive_rate": None,
        "source": "given",
        "median": None,
    }
    path.write_text('{"model": {"value": 0.5, "false_positive_rate": 0.01, "source": "of an earlier version"}}')
    assert load_thresholds(path)["model"].median is None


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_thresholds(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[1, 2]",
        "3",
        '{"model": 0.5}',
        '{"model": {"value": 0.5}}',
        '{"model": {"value": 0.5, "false_positive_rate": 0.01, "source": "", "more": 1}}',
        '{"model": {"value": "high", "false_positive_rate": 0.01, "source": ""}}',
        '{"model": {"value": null, "false_positive_rate": 0.01, "source": ""}}',
        '{"model": {"value": NaN, "false_positive_rate": 0.01, "source": ""}}',
        '{"model": {"value": true, "false_positive_rate": 0.01, "source": ""}}',
        '{"model": {"value": 0.5, "false_positive_rate": "0.01", "source": ""}}',
    ],
)
def test_a_file_of_something_else(tmp_path, text):
    path = tmp_path / "thresholds.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"thresholds\.json (holds no thresholds|is damaged|must hold a JSON object)"):
        load_thresholds(path)
