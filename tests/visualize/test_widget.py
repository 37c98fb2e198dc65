"""The review as the browser sees it: what is answered, what is on disk by then, and where the next review goes on."""

from __future__ import annotations

import csv
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

pytest.importorskip("anywidget")

from ssmctb_monai import files
from ssmctb_monai.visualize import compare, load_heatmap, review, widget
from ssmctb_monai.visualize.results import volume_files
from ssmctb_monai.visualize.verdicts import COLUMNS, VerdictFile
from ssmctb_monai.visualize.viewer import ViewerScan
from ssmctb_monai.visualize.widget import Review

SHAPE = (12, 10, 14)
SPOTS = {0.9: (3, 3, 4), 0.8: (8, 6, 9)}  # first voxel of 2 x 2 x 3 that have this score; the highest is the first


def scores_of(scale=1.0):
    scores = np.full(SHAPE, 0.1, dtype=np.float32)
    for score, (x, y, z) in SPOTS.items():
        scores[x : x + 2, y : y + 2, z : z + 3] = 0.9 * score
        scores[x, y, z] = score
    return scores * np.float32(scale)


def image_of():
    image = np.zeros(SHAPE, dtype=np.float32)
    image[1:11, 1:9, 1:13] = 100 + np.arange(12)
    return image


def write_map(folder, name, scale=1.0):
    nib.save(nib.Nifti1Image(scores_of(scale), np.eye(4)), folder / "maps" / f"{name}.nii.gz")


@pytest.fixture
def items(tmp_path):
    """Three cases on disk."""
    (tmp_path / "maps").mkdir()
    nib.save(nib.Nifti1Image(image_of(), np.eye(4)), tmp_path / "flair.nii.gz")
    for name in ("P1", "P2", "P3"):
        write_map(tmp_path, name)
    maps = [tmp_path / "maps" / f"P{number}.nii.gz" for number in (1, 2, 3)]
    return [{"image": tmp_path / "flair.nii.gz", "anomaly_map": file, "threshold": 0.5} for file in maps]


@pytest.fixture
def file(tmp_path):
    return VerdictFile(tmp_path / "maps" / "review.csv")


class Browser:
    """The other side, which speaks as review.js does."""

    def __init__(self, *arguments, **options):
        self.review = Review(*arguments, **options)
        self.review.send = lambda content, buffers=(): self.answers.append((content, buffers))
        self.number = 0

    def ask(self, message, buffers=()):
        self.answers = []
        self.review._handle_custom_msg(json.loads(json.dumps(message)), [memoryview(buffer) for buffer in buffers])
        ((answer, buffers),) = self.answers
        assert answer.pop("view") == message.get("view")
        assert all(type(buffer) is bytes for buffer in buffers)
        return json.loads(json.dumps(answer, allow_nan=False)), buffers

    def open(self, case):
        return self.ask({"type": "open", "case": case})[0]

    def voxel(self, case, candidate, threshold):
        """The voxel that names a candidate."""
        answer, _ = self.ask({"type": "threshold", "case": case, "threshold": threshold})
        return answer["candidates"][candidate]["scan_voxel"]

    def judge(self, case, candidate=None, threshold=None, **decided):
        """Sends what changed: a verdict, a comment, or both."""
        self.number += 1
        voxel = None if candidate is None else self.voxel(case, candidate, threshold)
        place = {"case": case, "threshold": threshold, "voxel": voxel}
        answer, _ = self.ask({"type": "judge", "number": self.number, **place, **decided})
        assert answer["number"] == self.number
        if answer["type"] == "saved":
            assert {key: answer[key] for key in place} == place
            assert {key: answer[key] for key in decided} == decided
            assert set(answer) == {"type", "number", *place, "time", "file", "verdict", "comment"}
        return answer

    @property
    def cases(self):
        return {case["case_id"]: case["verdict"] for case in self.review.cases}


def rows(file):
    with file.path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


# ----------------------------------------------------------------------------------------------- what the browser gets


def test_an_opened_case(items):
    browser = Browser(items)
    answer, buffers = browser.ask({"type": "open", "case": 1})
    scan = ViewerScan(load_heatmap(items[1] | {"case_id": "P2"}))
    assert set(answer) == {"type", "case", "header", "volumes", "verdict", "comment"}
    assert answer["volumes"] == ["map", "image"]
    assert (answer["type"], answer["case"], answer["verdict"], answer["comment"]) == ("case", 1, "", "")
    expected = scan.header()
    for entry in expected["candidates"]:
        entry |= {"verdict": "", "comment": "", "earlier": ""}
    assert answer["header"] == expected
    assert buffers == [scan.anomaly_map(), scan.layer(0)]


def test_a_label_comes_along(items):
    label = np.zeros(SHAPE)
    label[3:5, 3:5, 4:7] = 1
    _, buffers = Browser([items[0] | {"label": label}]).ask({"type": "open", "case": 0})
    assert len(buffers) == 3
    assert sum(buffers[2]) == 12
    assert len(buffers[2]) == len(buffers[1]) / 2 == len(buffers[0]) / 2


def test_another_layer(items):
    browser = Browser([item | {"reconstruction": image_of() + 3} for item in items])
    header = browser.open(2)["header"]
    assert header["layers"] == ["flair", "flair, reconstruction", "flair, image - reconstruction"]
    answer, (buffer,) = browser.ask({"type": "layer", "case": 2, "layer": 2})
    assert answer == {"type": "layer", "case": 2, "layer": 2}
    assert buffer == ViewerScan(load_heatmap(browser.review.items[2])).layer(2)


def test_another_threshold(items):
    browser = Browser(items)
    assert [entry["score"] for entry in browser.open(0)["header"]["candidates"]] == pytest.approx([0.9, 0.8])
    answer, buffers = browser.ask({"type": "threshold", "case": 0, "threshold": 0.8})
    assert not buffers
    assert {key: answer[key] for key in ("type", "case", "threshold", "total")} == {
        **{"type": "candidates", "case": 0},
        **{"threshold": 0.8, "total": 1},
    }
    (entry,) = answer["candidates"]
    assert entry["scan_voxel"] == [3, 3, 4]
    assert (entry["verdict"], entry["comment"], entry["earlier"]) == ("", "", "")


def test_threshold_of_the_review_goes_before_that_of_an_item(items):
    assert Browser(items, threshold=0.85).open(1)["header"]["threshold"] == 0.85
    assert Browser(items, threshold=0.0).open(1)["header"]["threshold"] == 0.0
    assert Browser(items).open(1)["header"]["threshold"] == 0.5
    assert items[1]["threshold"] == 0.5
    del items[0]["threshold"]
    assert Browser(items).open(0)["header"]["threshold"] == ViewerScan(load_heatmap(items[0])).default_threshold


def test_assets_and_colours():
    assert "export default { render };" in Review._esm
    assert Review._esm.index("function createViewer") < Review._esm.index("function render")
    assert set(Review.class_traits(sync=True)) >= {"cases", "start", "colormaps"}


def test_unknown_messages_are_answered(items):
    browser = Browser(items)
    for message in ({"type": "nonsense"}, {}, {"type": "open"}, {"type": "open", "case": 7}, {"type": "open", "x": 1}):
        answer, _ = browser.ask(message)
        assert (answer["type"], answer["number"]) == ("failed", None)
    answer, _ = browser.ask({"type": "threshold", "case": 0, "threshold": "high"})
    assert answer["type"] == "failed"
    assert browser.open(0)["type"] == "case"


# ------------------------------------------------------------------------------------------------------ corrected masks


def test_a_corrected_mask_is_on_disk_before_the_answer(items, tmp_path):
    browser = Browser(items)
    begin = {"type": "mask", "case": 1, "threshold": 0.5, "replace": False}
    _, (flagged,) = browser.ask(begin)
    assert sum(flagged) == 24
    empty = bytes(len(flagged))
    for content in (flagged, empty):
        answer, written = browser.ask({"type": "correct", "case": 1, "number": 5, "view": 0.3}, [content])
        assert written == [content]  # for other views of the widget
        file = tmp_path / "maps" / "corrected_masks" / "P2.nii.gz"
        assert (answer["type"], answer["number"], answer["file"]) == ("saved", 5, str(file))
        expected = scores_of() >= 0.5 if content is flagged else np.zeros(SHAPE)
        np.testing.assert_array_equal(nib.load(file).get_fdata(), expected)
    answer, buffers = Browser(items).ask({"type": "open", "case": 1})
    assert answer["volumes"] == ["map", "image", "mask"]
    assert buffers[2] == empty
    assert browser.ask(begin)[1] == [empty]  # a brush goes on from there
    assert browser.ask(begin | {"replace": True})[1] == [flagged]
    assert [stem for stem, _ in volume_files(tmp_path / "maps")] == ["P1", "P2", "P3"]  # it is taken for no map


def test_a_mask_that_cannot_be_taken(items, tmp_path):
    browser = Browser(items)
    answer, _ = browser.ask({"type": "correct", "case": 0, "number": 3}, [b"\1"])
    assert (answer["type"], answer["number"]) == ("failed", 3)
    assert not (tmp_path / "maps" / "corrected_masks").exists()
    other = tmp_path / "maps" / "corrected_masks" / "P1.nii.gz"
    other.parent.mkdir()
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([1, 1, 2, 1])), other)
    assert f"{other} lies on another grid than the map" in browser.open(0)["problem"]
    other.unlink()
    assert "header" in browser.open(0)
    named = Browser([items[0] | {"case_id": "../P1"}])
    answer, _ = named.ask({"type": "correct", "case": 0, "number": 3}, [bytes(int(np.prod(SHAPE)))])
    assert "'../P1' can be the name of no file" in answer["problem"]


# ----------------------------------------------------------------------------------------------------- verdicts on disk


def test_a_verdict_is_on_disk_before_the_answer(items, file):
    browser = Browser(items)
    browser.open(0)
    seen = []
    browser.review.send = lambda content, buffers=(): seen.append((content, rows(file)))
    browser.review._handle_custom_msg(
        {
            "type": "judge",
            "number": 7,
            "case": 0,
            "threshold": 0.5,
            "voxel": [8, 6, 9],
            "verdict": "reject",
            "comment": "x",
        },
        [],
    )
    ((answer, (row,)),) = seen
    assert (answer["type"], answer["number"], answer["file"]) == ("saved", 7, str(file.path))
    assert answer["time"] == row["time"]
    assert {key: answer[key] for key in ("case", "threshold", "voxel", "verdict", "comment")} == {
        **{"case": 0, "threshold": 0.5, "voxel": [8, 6, 9], "verdict": "reject", "comment": "x"}
    }
    checksum = file.read()[0].map_checksum
    assert len(checksum) == 16
    assert {key: value for key, value in row.items() if key not in ("time", "map_checksum", "score")} == {
        **{"case_id": "P1", "verdict": "reject", "comment": "x", "threshold": "0.5", "volume_ml": "0.012"},
        **{"x_mm": "8.0", "y_mm": "6.0", "z_mm": "9.0", "voxel_i": "8", "voxel_j": "6", "voxel_k": "9"},
    }
    assert float(row["score"]) == pytest.approx(0.8)


def test_positions_of_a_turned_scan(tmp_path):
    affine = np.array([[0, 0, -2, 5], [3, 0, 0, 6], [0, -4, 0, 7], [0, 0, 0, 1]])
    browser = Browser(
        [{"image": image_of(), "anomaly_map": scores_of(), "affine": affine}], 0.5, tmp_path / "review.csv"
    )
    browser.judge(0, verdict="accept", candidate=0, threshold=0.5)
    (verdict,) = browser.review.verdicts.read()
    assert verdict.voxel == (3, 3, 4)
    assert verdict.position == (5 - 2 * 4, 6 + 3 * 3, 7 - 4 * 3)
    assert verdict.volume == pytest.approx(12 * 24 / 1000)


def test_the_next_review_finds_everything(items):
    browser = Browser(items)
    browser.judge(0, verdict="accept", comment="all right")
    browser.judge(1, verdict="unsure", comment="an artefact?", candidate=1, threshold=0.5)

    again = Browser(items)
    assert again.review.start == 1
    assert again.cases == {"P1": "accept", "P2": "", "P3": ""}
    first = again.open(0)
    assert (first["verdict"], first["comment"]) == ("accept", "all right")
    assert [entry["verdict"] for entry in first["header"]["candidates"]] == ["", ""]
    second = again.open(1)
    assert (second["verdict"], second["comment"]) == ("", "")
    decided = [(entry["verdict"], entry["comment"], entry["earlier"]) for entry in second["header"]["candidates"]]
    assert decided == [("", "", ""), ("unsure", "an artefact?", "")]

    again.judge(1, verdict="reject")
    again.judge(2, verdict="unsure")
    assert again.cases == {"P1": "accept", "P2": "reject", "P3": "unsure"}
    assert Browser(items).review.start == 0
    assert Browser(items[::-1]).cases == again.cases


def test_the_same_candidate_at_another_threshold(items):
    browser = Browser(items)
    browser.judge(0, verdict="reject", comment="vessel", candidate=0, threshold=0.5)
    browser.judge(0, verdict="", comment="only a comment", candidate=1, threshold=0.5)
    answer, _ = Browser(items).ask({"type": "threshold", "case": 0, "threshold": 0.7})
    first, second = answer["candidates"]
    assert (first["verdict"], first["comment"], first["earlier"]) == ("", "", "reject at 0.5 (0.0 ml)")
    assert second["earlier"] == ""
    browser.judge(0, verdict="unsure", candidate=0, threshold=0.7)
    first, second = Browser(items, threshold=0.6).open(0)["header"]["candidates"]
    assert first["earlier"] == "reject at 0.5 (0.0 ml); unsure at 0.7 (0.0 ml)"
    assert second["earlier"] == ""
    first, _ = Browser(items).open(0)["header"]["candidates"]
    assert (first["verdict"], first["earlier"]) == ("reject", "unsure at 0.7 (0.0 ml)")


@pytest.mark.parametrize("threshold", [0.1 + 0.2, 1 / 3, 0.29345712065696716, 1e-7])
def test_verdicts_are_found_at_any_threshold(items, threshold):
    browser = Browser(items, threshold=threshold)
    sent = browser.open(0)["header"]["threshold"]
    browser.judge(0, verdict="accept", candidate=0, threshold=sent)
    assert Browser(items, threshold=threshold).open(0)["header"]["candidates"][0]["verdict"] == "accept"


def test_verdicts_of_default_thresholds_are_found(items):
    for item in items:
        del item["threshold"]
    browser = Browser(items)
    browser.judge(2, verdict="accept", candidate=0, threshold=browser.open(2)["header"]["threshold"])
    assert Browser(items).open(2)["header"]["candidates"][0]["verdict"] == "accept"


def test_verdicts_change_and_go(items, file):
    browser = Browser(items)
    browser.judge(0, verdict="accept", candidate=0, threshold=0.5)
    browser.judge(0, verdict="reject", comment="no", candidate=0, threshold=0.5)
    browser.judge(0, verdict="accept")
    assert [(verdict.verdict, verdict.threshold) for verdict in file.read()] == [("reject", 0.5), ("accept", None)]
    browser.judge(0, verdict="")
    assert browser.cases == {"P1": "", "P2": "", "P3": ""}
    browser.judge(0, verdict="", comment="a comment only", candidate=0, threshold=0.5)
    assert [(verdict.verdict, verdict.comment) for verdict in file.read()] == [("", "a comment only")]
    browser.judge(0, verdict="", comment="", candidate=0, threshold=0.5)
    assert file.read() == []
    assert Browser(items).open(0)["header"]["candidates"][0]["comment"] == ""


def test_a_comment_alone_is_no_verdict_on_the_case(items):
    browser = Browser(items)
    browser.judge(0, verdict="", comment="to be discussed")
    assert browser.cases["P1"] == ""
    assert Browser(items).open(0)["comment"] == "to be discussed"
    assert Browser(items).review.start == 0


def test_a_verdict_on_a_candidate_is_none_on_the_case(items):
    browser = Browser(items)
    browser.judge(0, verdict="accept", candidate=0, threshold=0.5)
    assert browser.cases["P1"] == ""


@pytest.mark.parametrize(
    "comment", ["Ödem, größer als „vorher“", 'a "b", c;\td', "two\nlines\r\nthree", "=1+1", "µ 🧠", " ", "a" * 5000]
)
def test_comments(items, comment):
    Browser(items).judge(1, verdict="accept", comment=comment)
    Browser(items).judge(1, verdict="unsure", comment=comment, candidate=0, threshold=0.5)
    answer = Browser(items).open(1)
    assert (answer["verdict"], answer["comment"]) == ("accept", comment)
    assert answer["header"]["candidates"][0]["comment"] == comment


def test_the_candidate_is_that_of_the_threshold(items, file):
    """The browser may still show the candidates of another threshold than that of the header."""
    browser = Browser(items)
    browser.open(0)
    browser.ask({"type": "threshold", "case": 0, "threshold": 0.85})
    browser.judge(0, verdict="reject", candidate=1, threshold=0.5)
    browser.judge(1, verdict="accept", candidate=0, threshold=0.7)
    browser.judge(1, verdict="accept", candidate=0, threshold=0)
    found = [(verdict.case_id, verdict.voxel, verdict.threshold, verdict.volume) for verdict in file.read()]
    assert found == [("P1", (8, 6, 9), 0.5, 0.012), ("P2", (3, 3, 4), 0.7, 0.012), ("P2", (3, 3, 4), 0.0, 0.96)]


# ---------------------------------------------------------------------------------------------------------- other maps


def test_verdicts_on_another_map_do_not_count(items, tmp_path, file):
    browser = Browser(items)
    browser.judge(0, verdict="accept", comment="fine")
    browser.judge(0, verdict="accept", candidate=0, threshold=0.5)
    browser.judge(1, verdict="accept")
    write_map(tmp_path, "P1", scale=0.99)
    again = Browser(items)
    assert again.cases == {"P1": "", "P2": "accept", "P3": ""}
    answer = again.open(0)
    assert (answer["verdict"], answer["comment"]) == ("", "")
    assert [entry["verdict"] for entry in answer["header"]["candidates"]] == ["", ""]
    again.judge(0, verdict="reject")
    assert [verdict.verdict for verdict in file.read()] == ["accept", "accept", "accept", "reject"]

    write_map(tmp_path, "P1")  # the first map again
    assert Browser(items).open(0)["comment"] == "fine"


def test_a_map_that_changes_while_it_is_reviewed(items, tmp_path):
    """What is shown and what the verdict is on are the same map."""
    browser = Browser(items)
    browser.judge(0, verdict="accept", comment="before")
    browser.open(2)
    write_map(tmp_path, "P1", scale=0.99)
    answer = browser.open(0)
    assert [entry["score"] for entry in answer["header"]["candidates"]] == pytest.approx([0.99 * 0.9, 0.99 * 0.8])
    assert answer["comment"] == ""
    browser.judge(0, verdict="reject", comment="after")
    assert Browser(items).open(0)["comment"] == "after"
    assert Browser(items).cases["P1"] == "reject"


def test_only_maps_with_verdicts_are_read_at_the_start(items, monkeypatch):
    Browser(items).judge(1, verdict="accept")
    read = []
    whole = widget.checksum
    monkeypatch.setattr(widget, "checksum", lambda path: read.append(Path(path).name) or whole(path))
    Browser(items)
    assert read == ["P2.nii.gz"]


def test_a_missing_map_with_verdicts(items):
    Browser(items).judge(0, verdict="accept")
    items[0]["anomaly_map"].unlink()
    browser = Browser(items)
    assert browser.cases == {"P1": "", "P2": "", "P3": ""}
    assert "P1.nii.gz does not exist" in browser.open(0)["problem"]


# --------------------------------------------------------------------------------------------------- what may go wrong


def test_a_case_that_cannot_be_loaded_says_why_and_the_others_go_on(items, caplog):
    items[1]["anomaly_map"].write_bytes(b"no gzip")
    items[2] = items[2] | {"threshold": float("nan")}
    browser = Browser(items)
    assert browser.open(0)["header"]["case_id"] == "P1"
    answer, buffers = browser.ask({"type": "open", "case": 1})
    assert not buffers
    assert set(answer) == {"type", "case", "problem", "verdict", "comment"}
    assert answer["problem"].startswith("P2 cannot be shown: ")
    assert "P2.nii.gz cannot be read" in answer["problem"]
    assert answer["problem"] in caplog.messages
    assert "threshold must be a finite number" in browser.open(2)["problem"]
    assert browser.open(0)["header"]["case_id"] == "P1"
    assert browser.judge(0, verdict="accept")["type"] == "saved"


def test_a_file_that_cannot_be_written(items, file, monkeypatch):
    browser = Browser(items)
    browser.judge(0, verdict="accept", comment="kept")
    before = file.path.read_bytes()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "whole_file", refuse)
        answer = browser.judge(0, verdict="reject", comment="lost?")
        assert answer["type"] == "failed"
        assert answer["problem"].startswith("PermissionError: ")
        assert str(file.path) in answer["problem"]
        assert file.path.read_bytes() == before
        assert browser.cases["P1"] == "accept"
    assert browser.judge(0, verdict="reject", comment="not lost")["type"] == "saved"
    assert Browser(items).open(0)["comment"] == "not lost"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="nothing is forbidden")
def test_a_folder_that_cannot_be_written(items, file):
    browser = Browser(items)
    file.path.parent.chmod(0o555)
    try:
        answer = browser.judge(0, verdict="accept")
    finally:
        file.path.parent.chmod(0o755)
    assert answer["type"] == "failed"
    assert "choose a file where you may write" in answer["problem"]


def test_a_broken_file_stays_as_it_is(items, file):
    browser = Browser(items)
    browser.judge(0, verdict="accept", comment="kept")
    kept = file.path.read_bytes()
    broken = kept + b"P2;accept\r\n"
    file.path.write_bytes(broken)
    answer = browser.judge(1, verdict="reject")
    assert answer["type"] == "failed"
    assert "line 3" in answer["problem"]
    answer = browser.ask({"type": "open", "case": 1})[0]
    assert (answer["type"], answer["number"]) == ("failed", None)
    assert file.path.read_bytes() == broken
    with pytest.raises(ValueError, match="line 3"):
        Review(items)
    file.path.write_bytes(kept)
    assert browser.judge(1, verdict="reject")["type"] == "saved"
    assert Browser(items).cases == {"P1": "accept", "P2": "reject", "P3": ""}


def test_what_is_no_verdict_is_not_written(items, file):
    browser = Browser(items)
    place = {"type": "judge", "case": 0, "number": 3, "threshold": 0.5, "voxel": [3, 3, 4]}
    for wrong in (
        {"verdict": "maybe"},
        {"comment": "\0"},
        {"verdict": None},
        {"verdict": "accept", "voxel": [3, 3, 5]},  # of the candidate, but not its highest
        {"verdict": "accept", "voxel": [0, 0, 0]},
        {"verdict": "accept", "voxel": None},
        {"verdict": "accept", "threshold": 0.85, "voxel": [8, 6, 9]},  # of another threshold
        {"verdict": "accept", "threshold": "high"},
        {"verdict": "accept", "case": 3},
        {"verdict": "accept", "map_checksum": "abc"},
    ):
        answer, _ = browser.ask(place | wrong)
        assert (answer["type"], answer["number"]) == ("failed", 3), wrong
    for wrong in ({"verdict": "maybe"}, {"comment": "\0"}):
        assert browser.judge(0, **wrong)["type"] == "failed"
    assert not file.path.exists()
    assert browser.ask(place | {"verdict": "accept"})[0]["type"] == "saved"


def test_an_unknown_candidate_says_what_to_do(items):
    message = {"type": "judge", "case": 0, "number": 1, "threshold": 0.5, "voxel": [1, 2, 3], "verdict": "accept"}
    answer, _ = Browser(items).ask(message)
    assert answer["problem"] == "ValueError: the map has no such candidate any more: open the case again"


def test_a_map_that_changes_before_a_verdict(items, file):
    """A verdict that was on its way when the candidates changed is on none of the new ones."""
    browser = Browser(items)
    browser.open(0)
    scores = scores_of()
    scores[3, 3, 4], scores[4, 3, 4] = scores[4, 3, 4], scores[3, 3, 4]
    nib.save(nib.Nifti1Image(scores, np.eye(4)), items[0]["anomaly_map"])
    browser.open(2)  # the first case is loaded anew then
    message = {"type": "judge", "case": 0, "number": 1, "threshold": 0.5, "voxel": [3, 3, 4], "verdict": "accept"}
    assert browser.ask(message)[0]["type"] == "failed"
    assert not file.path.exists()
    assert browser.ask(message | {"voxel": [4, 3, 4]})[0]["type"] == "saved"


@pytest.mark.parametrize("place", [{}, {"candidate": 1, "threshold": 0.5}], ids=["case", "candidate"])
def test_only_what_changed_is_written(items, file, place):
    browser = Browser(items)
    answer = browser.judge(0, verdict="reject", **place)
    assert (answer["verdict"], answer["comment"]) == ("reject", "")
    answer = browser.judge(0, comment="motion", **place)
    assert (answer["verdict"], answer["comment"]) == ("reject", "motion")
    answer = browser.judge(0, verdict="unsure", **place)
    assert (answer["verdict"], answer["comment"]) == ("unsure", "motion")
    answer = browser.judge(0, verdict="", **place)
    assert (answer["verdict"], answer["comment"]) == ("", "motion")
    assert [(verdict.verdict, verdict.comment) for verdict in file.read()] == [("", "motion")]
    answer = browser.judge(0, comment="", **place)
    assert (answer["verdict"], answer["comment"]) == ("", "")
    assert file.read() == []


@pytest.mark.parametrize("place", [{}, {"candidate": 0, "threshold": 0.5}], ids=["case", "candidate"])
def test_what_another_review_wrote_meanwhile_stays(items, file, place):
    first, second = Browser(items), Browser(items)
    first.open(0), second.open(0)
    first.judge(0, verdict="reject", comment="of the first", **place)
    assert second.judge(0, verdict="accept", **place)["comment"] == "of the first"
    assert first.judge(0, comment="again of the first", **place)["verdict"] == "accept"
    assert [(verdict.verdict, verdict.comment) for verdict in file.read()] == [("accept", "again of the first")]


def test_a_verdict_on_the_case_before(items, file):
    """A comment may come when the next case is already open."""
    browser = Browser(items)
    browser.open(0)
    browser.open(1)
    message = {"type": "judge", "case": 0, "number": 0.25, "threshold": 0.5, "voxel": [8, 6, 9], "comment": "late"}
    answer, _ = browser.ask(message)
    assert (answer["type"], answer["number"], answer["case"]) == ("saved", 0.25, 0)
    assert [(verdict.case_id, verdict.voxel, verdict.comment) for verdict in file.read()] == [("P1", (8, 6, 9), "late")]


def test_a_case_that_is_mended_can_be_opened_again(items):
    content = items[1]["anomaly_map"].read_bytes()
    items[1]["anomaly_map"].write_bytes(b"no gzip")
    browser = Browser(items)
    browser.open(0)  # loads the second in the background
    assert "P2.nii.gz cannot be read" in browser.open(1)["problem"]
    assert "P2.nii.gz cannot be read" in browser.open(1)["problem"]
    items[1]["anomaly_map"].write_bytes(content)
    answer = browser.open(1)
    assert answer["header"]["case_id"] == "P2"
    browser.judge(1, verdict="accept")
    assert Browser(items).cases["P2"] == "accept"


def test_another_view_begins_with_the_case_opened_last(items):
    browser = Browser(items)
    assert browser.review.start == 0
    browser.open(2)
    assert browser.review.start == 2
    browser.ask({"type": "threshold", "case": 1, "threshold": 0.3})
    assert browser.review.start == 2
    browser.open(1)
    assert browser.review.start == 1


def test_a_case_that_is_not_there_is_not_where_to_begin(items):
    browser = Browser(items)
    browser.open(1)
    assert browser.open(7)["type"] == "failed"
    assert browser.review.start == 1


def test_two_reviews_of_one_file(items, file):
    first, second = Browser(items), Browser(items)
    first.judge(0, verdict="accept")
    second.judge(1, verdict="reject", comment="of the second")
    first.judge(2, verdict="unsure")
    assert {verdict.case_id: verdict.verdict for verdict in file.read()} == {
        **{"P1": "accept", "P2": "reject", "P3": "unsure"}
    }
    assert first.cases == {"P1": "accept", "P2": "reject", "P3": "unsure"}
    assert first.open(1)["comment"] == "of the second"


def test_two_reviews_at_the_same_time(items, file):
    browsers = [Browser(items) for _ in range(2)]
    for browser in browsers:
        browser.open(0)
    with ThreadPoolExecutor(2) as pool:
        work = [
            pool.submit(
                lambda browser, case: [browser.judge(case, verdict="accept", comment=str(time)) for time in range(5)],
                *pair,
            )
            for pair in zip(browsers, (0, 1), strict=True)
        ]
        assert [[answer["type"] for answer in item.result()] for item in work] == [["saved"] * 5] * 2
    assert {verdict.case_id: verdict.comment for verdict in file.read()} == {"P1": "4", "P2": "4"}


# ------------------------------------------------------------------------------------------------------------ the cases


def test_where_verdicts_are_written(items, tmp_path, monkeypatch):
    arrays = {"image": image_of(), "anomaly_map": scores_of()}
    monkeypatch.chdir(tmp_path)
    Browser([arrays], 0.5).judge(0, verdict="accept")
    assert (tmp_path / "review.csv").is_file()
    mixed = Browser([arrays, *items], 0.5)
    assert mixed.review.verdicts.path == tmp_path / "maps" / "review.csv"
    chosen = tmp_path / "new" / "folder" / "of me.csv"
    browser = Browser(items, review_file=str(chosen))
    assert not chosen.parent.exists()
    assert browser.judge(0, verdict="accept")["file"] == str(chosen)
    assert chosen.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    assert not (tmp_path / "maps" / "review.csv").exists()


@pytest.mark.parametrize(
    "as_type",
    [
        np.asarray,
        lambda array: array.astype(">f4")[None],
        torch.from_numpy,
        lambda array: torch.from_numpy(array.astype(np.float64)).requires_grad_(),
        lambda array: MetaTensor(array[None], affine=torch.eye(4)),
    ],
    ids=["array", "big-endian", "tensor", "with gradient", "MetaTensor"],
)
def test_maps_in_memory(tmp_path, as_type):
    def browser(scale=1.0):
        item = {"image": image_of(), "anomaly_map": as_type(scores_of(scale)), "case_id": 0}
        return Browser([item], 0.5, tmp_path / "review.csv")

    browser().judge(0, verdict="accept", comment="seen")
    assert browser().open(0)["comment"] == "seen"
    assert browser().cases == {"0": "accept"}
    assert browser(scale=0.99).open(0)["comment"] == ""


def test_names(items, tmp_path):
    with pytest.raises(ValueError, match=r"Several cases are named P1, P2: give each a `case_id`"):
        Review([items[0], *items[:2], items[1], items[2]])
    arrays = {"image": image_of(), "anomaly_map": scores_of()}
    with pytest.raises(ValueError, match="named case"):
        Review([arrays, arrays])
    browser = Browser([arrays | {"case_id": "a"}, arrays | {"case_id": "b"}], 0.5, tmp_path / "review.csv")
    browser.judge(1, verdict="accept")
    assert browser.cases == {"a": "", "b": "accept"}
    assert "case_id" not in arrays
    assert Browser([items[1], items[0] | {"case_id": "other"}]).cases == {"P2": "", "other": ""}


@pytest.mark.parametrize("cases", [[], ()])
def test_no_cases(cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no case to review"):
        review(cases)


def test_wrong_cases(items):
    with pytest.raises(KeyError, match="P9 lacks anomaly_map, got image, case_id"):
        review([items[0], {"image": image_of(), "case_id": "P9"}])
    with pytest.raises(TypeError, match="`find_maps` returns, not str"):
        review("runs/maps")


def test_arrays_of_different_shapes():
    item = {"image": np.stack([image_of()] * 2), "anomaly_map": image_of()}
    Review([item])
    for changed in (item | {"anomaly_map": image_of()[1:]}, item | {"label": torch.zeros(1, 2, 3), "case_id": "P9"}):
        name = changed.get("case_id", "case")
        with pytest.raises(ValueError, match=rf"{name} cannot be shown, its arrays have different shapes: image \(2, "):
            review([item | {"case_id": "P1"}, changed])


def test_review_of_one_case_or_several(items, tmp_path):
    one = review(items[0], threshold=0.25, review_file=tmp_path / "one.csv")
    assert isinstance(one, Review)
    assert [case["case_id"] for case in one.cases] == ["P1"]
    assert one.items[0]["threshold"] == 0.25
    assert one.verdicts.path == tmp_path / "one.csv"
    several = review(iter(items))
    assert len(several.cases) == 3
    assert several.verdicts.path == tmp_path / "maps" / "review.csv"


def test_methods_side_by_side(items, tmp_path):
    (tmp_path / "theirs" / "maps").mkdir(parents=True)
    write_map(tmp_path / "theirs", "P2")
    theirs = [items[1] | {"anomaly_map": tmp_path / "theirs" / "maps" / "P2.nii.gz"}]
    box = compare({"ours": items, "theirs": theirs}, threshold=0.25)
    assert [[item["case_id"] for item in child.items] for child in box.children] == [["P2"], ["P2"]]
    assert [(child.title, child.linked, child.items[0]["threshold"]) for child in box.children] == [
        ("ours", True, 0.25),
        ("theirs", True, 0.25),
    ]
    assert [child.verdicts.path.parent for child in box.children] == [tmp_path / "maps", tmp_path / "theirs" / "maps"]
    with pytest.raises(ValueError, match="at least two, got ours"):
        compare({"ours": items})
    with pytest.raises(ValueError, match="no case in common: ours: P1; theirs: P2"):
        compare({"ours": items[:1], "theirs": theirs})
    with pytest.raises(ValueError, match="would go to one file"):
        compare({"ours": items, "same": items})
    with pytest.raises(ValueError, match="Several cases are named P1"):
        compare({"ours": items, "twice": [*items, items[0]]})


def test_the_next_case_is_loaded_in_the_background(items, monkeypatch):
    loaded = []
    whole = widget.load_heatmap
    monkeypatch.setattr(widget, "load_heatmap", lambda item: loaded.append(item["case_id"]) or whole(item))
    browser = Browser(items)
    browser.open(0)
    browser.open(1)
    browser.ask({"type": "threshold", "case": 1, "threshold": 0.3})
    browser.open(2)
    assert loaded == ["P1", "P2", "P3"]
    assert len(browser.review._scans) == 1  # memory does not grow
    browser.open(0)
    assert set(browser.review._scans) == {0, 1}
