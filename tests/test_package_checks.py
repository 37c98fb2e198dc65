from __future__ import annotations

import json
import re

import pytest

from ssmctb_monai.checks import check_checkpoint, settings_file

SETTINGS = {"modalities": ("flair", "t1ce"), "spacing": [2, 2, 2.0], "block": "ssmctb", "width": 8}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "best.pt").touch()
    trained = {"modalities": ["flair", "t1ce"], "spacing": [2.0, 2.0, 2.0], "block": "ssmctb", "width": 8}
    settings_file(tmp_path / "best.pt").write_text(json.dumps(trained))
    return tmp_path / "best.pt"


def test_settings_lie_beside_the_checkpoint(checkpoint):
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["best.pt", "best_settings.json"]


def test_same_settings(checkpoint):
    assert check_checkpoint(str(checkpoint), SETTINGS) == checkpoint
    assert check_checkpoint(checkpoint, {**SETTINGS, "of a later version": 1}) == checkpoint
    assert check_checkpoint(checkpoint, {}) == checkpoint


@pytest.mark.parametrize(
    ("name", "value", "trained"),
    [
        ("modalities", ("t1ce", "flair"), "['flair', 't1ce']"),
        ("modalities", ("flair",), "['flair', 't1ce']"),
        ("spacing", [1.5, 1.5, 1.5], "[2.0, 2.0, 2.0]"),
        ("block", None, "ssmctb"),
        ("width", 16, "8"),
    ],
)
def test_other_settings(checkpoint, name, value, trained):
    message = f"best.pt was trained with {name} {trained}, not with {name} {json.loads(json.dumps(value))}: give"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_checkpoint(checkpoint, {**SETTINGS, name: value})


def test_all_that_differs_is_named(checkpoint):
    with pytest.raises(ValueError, match=r"with block ssmctb, width 8, not with block none, width 4"):
        check_checkpoint(checkpoint, {**SETTINGS, "block": "none", "width": 4})


def test_checkpoint_without_settings(checkpoint):
    settings_file(checkpoint).unlink()
    assert check_checkpoint(checkpoint, {"width": 77}) == checkpoint


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train first, or name a checkpoint by --ckpt_file\.$"):
        check_checkpoint(tmp_path / "model.pt", SETTINGS)
    advice = r"by --ckpt_file: training writes below bundles/x/trained, and bundles/x/models/model\.pt is shipped\.$"
    with pytest.raises(FileNotFoundError, match=advice):
        check_checkpoint(tmp_path / "model.pt", SETTINGS, "bundles/x")
