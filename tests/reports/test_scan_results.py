"""What inference writes of every scan, and what a rerun does."""

from __future__ import annotations

import csv
import json
import logging
import os
import sys

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from ssmctb_monai.reports import ScanResults
from ssmctb_monai.reports import scan_results as module

SHAPE = (12, 10, 8)
AFFINES = {  # axis from the feet up, whether it runs up, and an affine
    "RAS": (2, True, np.diag([2.0, 2, 3, 1])),
    "LPI": (2, False, np.array([[-1.0, 0, 0, 9], [0, -2, 0, 30], [0, 0, -3, 50], [0, 0, 0, 1]])),
    "SRA": (0, True, np.array([[0, 1.5, 0, 3], [0, 0, 2.0, 50], [1, 0, 0, -7], [0, 0, 0, 1]])),
    "AIR": (1, False, np.array([[0, 0, 2.0, 3], [1.5, 0, 0, 50], [0, -1, 0, -7], [0, 0, 0, 1]])),
    "oblique": (2, True, np.array([[0.98, 0.17, 0, -4], [-0.17, 0.98, 0, 6], [0, 0, 2.5, 8], [0, 0, 0, 1]])),
}


@pytest.fixture
def scans(tmp_path):
    items = []
    for name in ("b", "a", "c"):
        file = tmp_path / "scans" / f"{name}.nii.gz"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(name.encode())
        items.append({"case_id": name, "patient_id": name, "image": [str(file)]})
    return items


def maps(affine=AFFINES["RAS"][2], seed=0):
    """Anomaly map, brain and reconstruction of two modalities; 0.9 to 1 in 25 voxels of one slice."""
    generator = torch.Generator().manual_seed(seed)
    brain = torch.zeros(1, *SHAPE)
    brain[:, 1:-1, 1:-1, 1:-1] = 1
    anomaly_map = torch.rand(1, *SHAPE, generator=generator) * 0.5
    reconstruction = torch.rand(2, *SHAPE, generator=generator) * 900
    return [MetaTensor(tensor, affine=torch.from_numpy(affine)) for tensor in (anomaly_map, brain, reconstruction)]


def table(folder):
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def results(folder, **arguments):
    return ScanResults(folder / "out", arguments.pop("settings", {"checkpoint": "abc"}), **arguments)


def files(folder):
    found = sorted(str(file.relative_to(folder / "out")) for file in (folder / "out").rglob("*") if file.is_file())
    return [name for name in found if name != ".summary.lock"]


def names(items):
    return [item["case_id"] for item in items]


# ------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize(("axis", "runs_up", "affine"), AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("index", [2, 5])
def test_row_and_map_of_a_scan(tmp_path, scans, axis, runs_up, affine, index):
    anomaly_map, brain, _ = maps(affine)
    plane = np.moveaxis(anomaly_map.numpy()[0], axis, 0)[index]
    plane[2:7, 2:7] = np.linspace(0.9, 1, 25).reshape(5, 5)
    plane[0] = 0.99  # outside of the brain
    saved = results(tmp_path, threshold=0.93)
    saved.pending(scans)
    saved.add("a", anomaly_map, brain)
    row = table(tmp_path / "out")["a"]
    assert (row["slice"], row["slice_axis"]) == (str(index), str(axis))
    # The highest 20 of 25 values from 0.9 to 1; 17 of them reach 0.93.
    assert float(row["anomaly_score"]) == pytest.approx(np.linspace(0.9, 1, 25)[5:].mean(), abs=1e-5)
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert float(row["flagged_ml"]) == pytest.approx(17 * voxel, rel=1e-5)
    assert float(row["brain_ml"]) == pytest.approx(10 * 8 * 6 * voxel, rel=1e-5)
    assert (row["threshold"], row["problem"], row["image"]) == ("0.93", "", scans[1]["image"][0])
    image = nibabel.load(tmp_path / "out" / "maps" / "a.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), anomaly_map.numpy()[0])
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert files(tmp_path) == ["maps/a.nii.gz", "settings.json", "summary.csv"]


def test_mask_and_reconstruction(tmp_path, scans):
    anomaly_map, brain, reconstruction = maps()
    saved = results(tmp_path, threshold=0.25, save_mask=True, save_reconstruction=True)
    saved.pending(scans)
    saved.add("c", anomaly_map, brain, reconstruction)
    mask = nibabel.load(tmp_path / "out" / "masks" / "c.nii.gz")
    expected = (anomaly_map.numpy()[0] >= 0.25) & (brain.numpy()[0] > 0)
    np.testing.assert_array_equal(mask.get_fdata(), expected)
    assert mask.get_data_dtype() == np.uint8
    voxel = 0.012  # ml
    assert float(table(tmp_path / "out")["c"]["flagged_ml"]) == pytest.approx(expected.sum() * voxel, rel=1e-5)
    written = nibabel.load(tmp_path / "out" / "reconstructions" / "c.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), reconstruction.numpy().transpose(1, 2, 3, 0))
    for image in (mask, written):
        np.testing.assert_allclose(image.affine, AFFINES["RAS"][2])


def test_without_a_threshold_nothing_is_flagged(tmp_path, scans, caplog):
    saved = results(tmp_path)
    with caplog.at_level(logging.WARNING):
        saved.pending(scans)
    assert "no threshold" in caplog.text
    saved.add("a", *maps()[:2])
    row = table(tmp_path / "out")["a"]
    assert (row["threshold"], row["flagged_ml"]) == ("", "")
    assert float(row["anomaly_score"]) > 0
    with pytest.raises(ValueError, match="or give `--threshold`"):
        results(tmp_path, save_mask=True)


@pytest.mark.parametrize("threshold", ["none", "0.5", -0.1, 1.01, 50, float("nan"), float("inf")])
def test_ill_threshold(tmp_path, threshold):
    with pytest.raises(ValueError, match=r"a number in \[0, 1\]"):
        results(tmp_path, threshold=threshold)


def test_settings(tmp_path, scans):
    results(tmp_path, threshold=0.5, settings={"checkpoint": "abc", "modalities": ["flair"]}).pending(scans)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings == {"checkpoint": "abc", "modalities": ["flair"], "threshold": 0.5}


def test_rows_in_the_order_of_the_names(tmp_path, scans):
    saved = results(tmp_path)
    saved.pending(scans)
    for name in ("c", "a", "b"):
        saved.add(name, *maps()[:2])
    assert list(table(tmp_path / "out")) == ["a", "b", "c"]


# ------------------------------------------------------------------------------------------- reruns


def test_rerun_does_what_is_missing(tmp_path, scans, caplog):
    saved = results(tmp_path)
    assert names(saved.pending(scans)) == ["b", "a", "c"]
    saved.add("a", *maps()[:2])
    saved.fail("b", "damaged")
    again = results(tmp_path)
    with caplog.at_level(logging.INFO):
        assert names(again.pending(scans)) == ["b", "c"]
    assert "1 of 3 scans are done already" in caplog.text
    again.add("b", *maps()[:2])
    again.add("c", *maps()[:2])
    assert {name: row["problem"] for name, row in table(tmp_path / "out").items()} == {"a": "", "b": "", "c": ""}
    assert results(tmp_path).pending(scans) == []


def change_scan(folder, scans):
    os.utime(scans[1]["image"][0], (1, 1))
    return {}


def lose_map(folder, scans):
    (folder / "out" / "maps" / "a.nii.gz").unlink()
    return {}


def lose_table(folder, scans):
    (folder / "out" / "summary.csv").unlink()
    return {}


CHANGES = {
    "scan": change_scan,
    "map lost": lose_map,
    "table lost": lose_table,
    "settings": lambda folder, scans: {"settings": {"checkpoint": "abd"}},
    "threshold": lambda folder, scans: {"threshold": 0.6},
    "mask": lambda folder, scans: {"save_mask": True},
    "reconstruction": lambda folder, scans: {"save_reconstruction": True},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changed_is_done_again(tmp_path, scans, change):
    saved = results(tmp_path, threshold=0.5)
    saved.pending(scans)
    saved.add("a", *maps()[:2])
    assert names(results(tmp_path, threshold=0.5).pending(scans)) == ["b", "c"]
    arguments = {"threshold": 0.5, **change(tmp_path, scans)}
    assert names(results(tmp_path, **arguments).pending(scans)) == ["b", "a", "c"]


def test_scans_of_another_folder_stay_in_the_table(tmp_path, scans):
    saved = results(tmp_path)
    saved.pending(scans[:2])
    saved.fail("b", "damaged")
    other = results(tmp_path)
    assert names(other.pending(scans[2:])) == ["c"]
    other.add("c", *maps()[:2])
    assert list(table(tmp_path / "out")) == ["b", "c"]
    assert other.problems == {}  # that of "b" belongs to another run
    assert saved.problems == {"b": "damaged"}


def test_a_scan_that_fails_keeps_no_map_of_another_checkpoint(tmp_path, scans):
    saved = results(tmp_path)
    saved.pending(scans)
    saved.add("a", *maps()[:2])
    again = results(tmp_path, settings={"checkpoint": "xyz"})
    again.pending(scans)
    again.fail("a", "out of memory")
    assert files(tmp_path) == ["settings.json", "summary.csv"]
    row = table(tmp_path / "out")["a"]
    assert (row["problem"], row["anomaly_score"], row["slice"]) == ("out of memory", "", "")


def test_no_file_of_another_threshold_stays(tmp_path, scans):
    anomaly_map, brain, reconstruction = maps()
    for threshold, kinds in ((0.2, ("save_mask", "save_reconstruction")), (0.4, ()), (0.4, ("save_mask",))):
        saved = results(tmp_path, threshold=threshold, **dict.fromkeys(kinds, True))
        assert "a" in names(saved.pending(scans))
        saved.add("a", anomaly_map, brain, reconstruction)
        expected = ["maps/a.nii.gz", *(f"{kind[5:]}s/a.nii.gz" for kind in kinds), "settings.json", "summary.csv"]
        assert files(tmp_path) == sorted(expected)
    mask = nibabel.load(tmp_path / "out" / "masks" / "a.nii.gz").get_fdata()
    assert mask.sum() == ((anomaly_map >= 0.4) & (brain > 0)).sum()


def test_kill_between_files_and_row(tmp_path, scans, monkeypatch):
    """The files are those of 0.4 then, the row was that of 0.2: with 0.2 the scan is not done."""
    saved = results(tmp_path, threshold=0.2, save_mask=True)
    saved.pending(scans)
    saved.add("a", *maps()[:2])
    other = results(tmp_path, threshold=0.4, save_mask=True)
    other.pending(scans)
    monkeypatch.setattr(other, "_store", lambda row: sys.exit())
    with pytest.raises(SystemExit):
        other.add("a", *maps()[:2])
    assert "masks/a.nii.gz" in files(tmp_path)
    assert "run inference again" in table(tmp_path / "out")["a"]["problem"]
    assert "a" in names(results(tmp_path, threshold=0.2, save_mask=True).pending(scans))


@pytest.mark.parametrize("content", [b"x,y\n1,2\n", b"\xff\xfe\x00", b"case_id,image\na,b\n", b""])
def test_summary_of_another_program(tmp_path, scans, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"summary.csv is no summary of scans: choose another --output_dir"):
        results(tmp_path).pending(scans)
    assert (tmp_path / "out" / "summary.csv").read_bytes() == content


@pytest.mark.parametrize("kind", ["maps", "masks"])
def test_a_killed_write_leaves_no_map(tmp_path, scans, monkeypatch, kind):
    saved = results(tmp_path, threshold=0.2, save_mask=True)
    saved.pending(scans)
    save = nibabel.save

    def die(image, path):
        if path.parent.name == kind:
            path.write_bytes(b"half")
            raise SystemExit
        save(image, path)

    monkeypatch.setattr(nibabel, "save", die)
    with pytest.raises(SystemExit):
        saved.add("a", *maps()[:2])
    assert f"{kind}/a.nii.gz" not in files(tmp_path)
    assert "summary.csv" not in files(tmp_path)
    monkeypatch.undo()
    again = results(tmp_path, threshold=0.2, save_mask=True)
    assert "a" in names(again.pending(scans))


def test_leftovers_of_a_killed_process_are_removed(tmp_path, scans):
    for folder in ("", "maps"):
        (tmp_path / "out" / folder).mkdir(exist_ok=True, parents=True)
        leftover = tmp_path / "out" / folder / ".unfinished-77-a.nii.gz"
        leftover.write_text("half")
        os.utime(leftover, (0, 0))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    results(tmp_path).pending(scans)
    assert files(tmp_path) == ["notes.txt", "settings.json"]


# ------------------------------------------------------------------------------------------- what cannot be done


def test_nan_in_the_brain(tmp_path, scans):
    anomaly_map, brain, _ = maps()
    anomaly_map[0, 5, 5, 5] = torch.nan
    saved = results(tmp_path)
    saved.pending(scans)
    with pytest.raises(ValueError, match="NaN"):
        saved.add("a", anomaly_map, brain)
    assert files(tmp_path) == ["settings.json"]


def test_too_little_brain_for_a_slice(tmp_path, scans):
    anomaly_map, brain, _ = maps()
    brain[:] = 0
    brain[0, 2:6, 2:6] = 1  # 16 voxels in every slice
    saved = results(tmp_path)
    saved.pending(scans)
    with pytest.raises(ValueError, match="a has no result: no axial slice holds 20 voxels"):
        saved.add("a", anomaly_map, brain)


def test_dicom_is_made_from_dicom_only(tmp_path, scans):
    series = tmp_path / "series"
    series.mkdir()
    scans[0]["image"] = [str(series)]
    scans[2]["problems"] = ["no flair image"]
    scans[2]["image"] = []
    to_do = results(tmp_path, save_dicom=True).pending(scans)
    assert [item.get("problems") for item in to_do] == [
        None,
        [f"{scans[1]['image'][0]} is no DICOM series, and from other scans no DICOM is made"],
        ["no flair image"],
    ]
    assert scans[1].keys() == {"case_id", "patient_id", "image"}  # the caller's are as they were


def test_dicom_of_map_and_mask(tmp_path, scans, monkeypatch):
    calls = []

    def write(kind):
        def note(array, series, path):
            calls.append((kind, series, path.name, float(array.max())))
            path.parent.mkdir(exist_ok=True)
            path.touch()

        return note

    monkeypatch.setattr(module, "write_parametric_map", write("map"))
    monkeypatch.setattr(module, "write_segmentation", write("mask"))
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_text("slice")
    scans[0]["image"] = [str(series)]
    saved = results(tmp_path, threshold=0.3, save_mask=True, save_dicom=True)
    saved.pending(scans)
    anomaly_map, brain, _ = maps()
    saved.add("b", anomaly_map, brain)
    highest = float(anomaly_map.max())
    assert calls == [("map", str(series), "b_map.dcm", highest), ("mask", str(series), "b_mask.dcm", 1)]
    assert names(results(tmp_path, threshold=0.3, save_mask=True, save_dicom=True).pending(scans[:1])) == []
    (series / "2.dcm").write_text("slice")  # one more slice
    assert names(results(tmp_path, threshold=0.3, save_mask=True, save_dicom=True).pending(scans[:1])) == ["b"]


# ------------------------------------------------------------------------------------------- many programs, many scans


def test_programs_that_write_at_a_time_lose_no_row(tmp_path, scans):
    one, other = results(tmp_path), results(tmp_path)
    one.pending(scans[:1])
    other.pending(scans[1:])
    other.add("a", *maps()[:2])
    one.add("b", *maps()[:2])
    other.fail("c", "damaged")
    one.finish()
    problems = {name: row["problem"] for name, row in table(tmp_path / "out").items()}
    assert problems == {"a": "", "b": "", "c": "damaged"}
    assert {"maps/a.nii.gz", "maps/b.nii.gz"} <= set(files(tmp_path))


def test_a_long_table_is_added_to_and_put_in_order_at_the_end(tmp_path, monkeypatch):
    scans = [{"case_id": f"s{k:04d}", "patient_id": "p", "image": [f"/s{k}.nii"]} for k in range(1200)]
    saved = results(tmp_path)
    saved.pending(scans)
    written = []
    write_csv = module.write_csv
    monkeypatch.setattr(module, "write_csv", lambda *given: (written.append(len(given[1])), write_csv(*given)))
    for scan in reversed(scans):
        saved.fail(scan["case_id"], "=damaged")
    assert sum(written) < 110 * len(scans)
    assert len(table(tmp_path / "out")) == len(scans)
    with (tmp_path / "out" / "summary.csv").open("a") as file:
        file.write("s9999,0.5,")  # a program was killed while it wrote
    saved.fail("s0003", "another")
    saved.finish()
    rows = table(tmp_path / "out")
    assert list(rows) == [scan["case_id"] for scan in scans]
    assert (rows["s0002"]["problem"], rows["s0003"]["problem"]) == ("'=damaged", "another")


@pytest.mark.parametrize("name", ["M" * 230, "M" * 249, "../../evil", ".", "a\nb"])
def test_a_name_that_no_file_can_have_stops_nobody(tmp_path, scans, name):
    saved = results(tmp_path)
    to_do = {scan["case_id"]: scan for scan in saved.pending([*scans, {**scans[0], "case_id": name}])}
    assert "problems" not in to_do["a"]
    if name == "M" * 230:
        saved.add(name, *maps()[:2])
        assert f"maps/{name}.nii.gz" in files(tmp_path)
        return
    assert "rename the scan" in to_do[name]["problems"][0]
    saved.fail(name, to_do[name]["problems"][0])
    saved.add("a", *maps()[:2])
    assert set(table(tmp_path / "out")) == {"a", name}
    assert not list(tmp_path.rglob("evil*"))


# ------------------------------------------------------------------------------------------- what is implausible


@pytest.mark.parametrize(
    ("size", "settings", "threshold", "warning"),
    [
        (50.0, {}, 0.2, ""),  # 480 voxels of 2 ml each
        (20.0, {}, 0.2, "the brain measures 384 ml, outside of 600 to 2200"),
        (200.0, {}, 0.2, "the brain measures 3840 ml, outside of 600 to 2200: is there a skull"),
        (200.0, {"background": "noise"}, 0.2, ""),
        (50.0, {}, 1.0, "the threshold lies above every score"),
        (50.0, {"modalities": ["t1"]}, 0.2, "a_flair.nii calls itself flair, but is taken as t1"),
    ],
)
def test_what_is_implausible_is_said(tmp_path, caplog, size, settings, threshold, warning):
    affine = np.diag([size, 8.0, 5.0, 1])
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.float32), affine)
    image.header["descrip"] = b"t2_FLAIR_tra"
    nibabel.save(image, tmp_path / "a_flair.nii")
    saved = results(tmp_path, settings=settings, threshold=threshold)
    saved.pending([{"case_id": "a", "patient_id": "a", "image": [str(tmp_path / "a_flair.nii")]}])
    saved.add("a", *maps(affine)[:2])
    written = table(tmp_path / "out")["a"]["warning"]
    assert (warning in written) if warning else written == ""
    assert ("a: " + written in caplog.text) == bool(warning)


def test_settings_of_a_stopped_rerun_are_not_those_of_older_maps(tmp_path, scans):
    """Those that the rerun did not come to have a problem until it does."""
    first = results(tmp_path)
    for scan in first.pending(scans):
        first.add(scan["case_id"], *maps())
    second = results(tmp_path, settings={"checkpoint": "another"})
    (scan, *_) = second.pending(scans)
    second.add(scan["case_id"], *maps(seed=1))
    assert json.loads((tmp_path / "out/settings.json").read_text())["checkpoint"] == "another"
    problems = {name: row["problem"] for name, row in table(tmp_path / "out").items()}
    assert problems == {"b": "", "a": module.OUTDATED, "c": module.OUTDATED}
    assert names(results(tmp_path, settings={"checkpoint": "another"}).pending(scans)) == ["a", "c"]


def test_a_doubt_about_a_path_of_odd_bytes(tmp_path, scans):
    """Latin-1, as old archives have it."""
    scan = {**scans[0], "image": [os.fsdecode(b"/M\xfcller/b.nii.gz")]}
    made = results(tmp_path, threshold=0.999)
    made.pending([scan])
    brain = maps()
    brain[1].meta["doubt"] = f"lies in {scan['image'][0]}"
    made.add("b", *brain)
    assert r"M\udcfcller" in table(tmp_path / "out")["b"]["warning"]
    assert "maps/b.nii.gz" in files(tmp_path)


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ScanResults("~/out", {}).output_dir == tmp_path / "out"
