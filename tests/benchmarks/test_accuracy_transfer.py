"""Transfer to other scans: the bundles' own pipeline, what is left out, what is done again, and the tables."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from sklearn.metrics import average_precision_score
from torch import nn

from benchmarks.accuracy import transfer as module
from benchmarks.accuracy.rows import BUNDLES
from benchmarks.accuracy.scores import FirstChannel
from benchmarks.accuracy.transfer import Detector, find_sets, tables, trained_detector, transfer

SHIPPED = {name: BUNDLES / name / "models/model.pt" for name in ("brats2d", "brats3d")}


def write_scan(folder, name, lesion=True, shape=(40, 36, 24), spacing=(2, 2, 3), origin=0):
    """Noise in an ellipsoid with a bright lesion; the label's origin may be wrong."""
    rng = np.random.default_rng(len(name) + ord(name[-1]))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.9
    mask = np.zeros(shape, bool)
    mask[22:30, 14:20, 8:14] = lesion
    image = brain * rng.integers(300, 360, shape) + 40 * mask
    for kind, array in {"flair": image, "seg": 4 * mask}.items():
        affine = np.diag([*spacing, 1.0])
        affine[0, 3] = origin if kind == "seg" else 0
        path = folder / name / f"{name}_{kind}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), affine), path)
    return image, mask, brain | mask


def write_beside(ckpt_file, threshold=None, cases=None):
    """What training leaves, as far as it is asked for."""
    ckpt_file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({}, ckpt_file)
    if threshold is not None:
        content = {"model": {"value": threshold, "false_positive_rate": 0.001, "source": "made"}}
        ckpt_file.with_name("model_thresholds.json").write_text(json.dumps(content))
    if cases is not None:
        ckpt_file.with_name("model_record.json").write_text(json.dumps({"cases": cases}))


@pytest.fixture
def scans(tmp_path):
    """Two sets, one of which holds a scan without a lesion."""
    for name in ("TCGA_CS_0001_2001", "Scan_b"):
        write_scan(tmp_path / "scans" / "first", name)
    write_scan(tmp_path / "scans" / "more" / "second", "Scan_c", lesion=False)
    write_scan(tmp_path / "scans" / "more" / "second", "Scan_d")
    return tmp_path / "scans"


@pytest.fixture
def image_detector(tmp_path):
    """Returns a function that makes a detector which scores voxels by the image."""

    def make(name="made", **beside):
        write_beside(tmp_path / name / "model.pt", **beside)
        return Detector(name, BUNDLES / "brats2d", tmp_path / name / "model.pt", network=FirstChannel())

    return make


def values(result, method, name):
    return result["methods"][method]["figures"][name]["value"]


@pytest.mark.process
@pytest.mark.parametrize("bundle", ["brats2d", "brats3d"])
def test_as_the_bundle_evaluates(tmp_path, bundle):
    write_scan(tmp_path / "scans" / "made", "Scan_a")
    (result,) = transfer(
        [Detector(bundle, BUNDLES / bundle, SHIPPED[bundle])], tmp_path / "scans", tmp_path / "work"
    ).values()
    datalist = {
        "test": [
            {"case_id": "Scan_a", "image": {"flair": "Scan_a/Scan_a_flair.nii.gz"}, "label": "Scan_a/Scan_a_seg.nii.gz"}
        ]
    }
    (tmp_path / "datalist.json").write_text(json.dumps(datalist))
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / bundle / "evaluate.json"))
    overrides = {
        "bundle_root": BUNDLES / bundle,
        "ckpt_file": SHIPPED[bundle],
        "dataset_dir": tmp_path / "scans/made",
        "datalist_file": tmp_path / "datalist.json",
        "output_dir": tmp_path / "report",
    }
    for key, value in {**{key: str(path) for key, path in overrides.items()}, "viewer": False}.items():
        parser[key] = value
    evaluator, evaluation = (parser.get_parsed_content(name) for name in ("evaluator", "evaluation"))
    evaluator.run()
    estimates = evaluation.estimates("model")
    for name in module.SHOWN:
        assert values(result, bundle, name) == pytest.approx(estimates[name].value, abs=1e-4), name


def test_scores_of_the_image(scans, tmp_path, image_detector):
    image, mask, brain = write_scan(scans / "first", "Scan_b")
    detectors = [image_detector("one", threshold=0.0), image_detector("other", threshold=2.0)]
    results = transfer(detectors, scans, tmp_path / "work")
    assert list(results) == ["first", "second"]
    first, second = results.values()
    # The network returns its input, so that the detectors, their mean and the image itself are the same
    for method in ("one", "other", "mean"):
        for differences in first["methods"][method]["minus"].values():
            assert [difference["value"] for difference in differences.values()] == pytest.approx([0] * 5, abs=1e-4)
    references = {name: list(method["minus"]) for name, method in first["methods"].items()}
    assert references == {"one": ["image"], "other": ["image", "one"], "mean": ["image", "one"], "image": [], "raw": []}
    raw = json.loads((tmp_path / "work/one+other/first.json").read_text())["scans"]["Scan_b"]["raw"]
    expected = average_precision_score(mask[brain], image[brain])
    assert raw["pixel_average_precision"] == pytest.approx(expected, abs=1e-3)
    # Thresholds: all voxels are flagged, none, and none at the mean of 1
    lesion_share = 2 * mask.sum() / (mask.sum() + brain.sum())
    assert values(first, "one", "dice_at_threshold") == pytest.approx(lesion_share, abs=1e-3)
    silent = {name: method["nothing_flagged_share"] for name, method in second["methods"].items()}
    assert silent == {"one": 0, "other": 1, "mean": 1, "image": None, "raw": None}
    again = transfer(detectors, scans, tmp_path / "work", ["second"], mean_threshold=0.0)["second"]
    assert again["methods"]["mean"]["nothing_flagged_share"] == 0
    assert (second["number_of_cases"], second["number_of_cases_with_lesion"]) == (2, 1)
    assert values(second, "one", "slice_false_alarm_share") == 1
    assert (tmp_path / "work/one+other/transfer.md").read_text().startswith("| set | score | AP |")


def test_what_is_finished_is_not_done_again(scans, tmp_path, image_detector, monkeypatch):
    done, evaluate = [], module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda pipelines, *more: done.append(pipelines) or evaluate(pipelines))
    detector, work = image_detector(), tmp_path / "work"
    assert list(transfer([detector], scans, work, ["second"], limit=1)) == ["second"]
    before = transfer([detector], scans, work)
    assert before["second"]["number_of_cases"] == 2
    assert len(done) == 3
    assert transfer([detector], scans, work) == before
    assert len(done) == 3
    scores = sorted((work / "scores").glob("*/*.pt"))
    assert len(scores) == 4
    torch.save(torch.load(scores[0]) * 0, scores[0])  # what the network said of a scan stands
    (work / "made/first.json").unlink()
    assert transfer([detector], scans, work)["first"]["methods"]["made"] != before["first"]["methods"]["made"]
    torch.save({"": torch.zeros(1)}, detector.ckpt_file)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *arguments: None)
    assert list(transfer([detector], scans, work, ["first"])) == ["first"]  # those of the other weights are gone
    assert len(done) == 5
    assert len([*(work / "scores").glob("*/*.pt")]) == 6


def test_what_is_left_out(scans, tmp_path, image_detector, caplog):
    write_scan(scans / "first", "Scan_e", origin=7)
    (scans / "first/Scan_b/Scan_b_flair.nii.gz").write_bytes(b"no image")
    write_scan(scans / "first", "Scan_f")
    (scans / "first/Scan_f/Scan_f_flair.nii.gz").rename(scans / "first/Scan_f/Scan_f_t1.nii.gz")
    detector = image_detector(cases=["TCGA_CS_0001_1999", "Scan_c", "Scan_d"])
    results = transfer([detector], scans, tmp_path / "work")
    assert results["first"]["number_of_cases"] == 1  # Scan_e, whose label is repaired
    reasons = {name: why[0] for name, why in results["first"]["left_out"].items()}
    assert sorted(reasons) == ["Scan_b", "Scan_f", "TCGA_CS_0001_2001"]
    assert reasons["TCGA_CS_0001_2001"] == "trained on"  # another scan of the patient
    assert "Scan_b_flair.nii.gz" in reasons["Scan_b"]
    assert "no flair image" in reasons["Scan_f"]
    assert results["second"]["methods"] == {}
    text = tables(results)
    assert "second: 2 scans are left out, since a detector was trained on their patients." in text
    assert "first: 2 scans cannot be used." in text
    assert "first: 1 scans are left out" in text
    assert "none of its training scans" not in caplog.text
    assert image_detector("unknown").patients == set()
    assert "unknown: there is no " in caplog.text


def test_heads_have_their_brain_cut_out(scans, tmp_path, image_detector, monkeypatch):
    monkeypatch.setattr("ssmctb_monai.transforms.brain.HAS_DEEPBET", False)
    transfer([image_detector()], scans, tmp_path / "work", ["second"], skulls=["second"])
    made = json.loads((tmp_path / "work/made/second.json").read_text())
    plain = transfer([image_detector()], scans, tmp_path / "other", ["second"])
    assert made["configuration"]["overrides"] == {"background": "skull"}
    assert values(made, "raw", "pixel_average_precision") != values(plain["second"], "raw", "pixel_average_precision")


def test_sets_are_folders(scans, tmp_path):
    flat = scans / "flat"
    for file in (scans / "first" / "Scan_b").iterdir():
        flat.mkdir(exist_ok=True)
        file.rename(flat / file.name)
    (scans / "more/second/Scan_d/Scan_d_seg.nii.gz").unlink()
    found = find_sets(scans)
    assert {name: [case.case_id for case in cases] for name, cases in found.items()} == {
        "first": ["TCGA_CS_0001_2001"],
        "flat": ["Scan_b"],
        "second": ["Scan_c"],
    }
    write_scan(scans / "other" / "flat", "Scan_x")
    with pytest.raises(ValueError, match="names of their own"):
        find_sets(scans)


def test_wrong_words(scans, tmp_path, image_detector):
    with pytest.raises(ValueError, match=r"no set third in .*scans; there are first, second"):
        transfer([image_detector()], scans, tmp_path / "work", ["third"])
    for detectors in ([], [image_detector()] * 2, [image_detector("raw")]):
        with pytest.raises(ValueError, match="names of their own"):
            transfer(detectors, scans, tmp_path / "work")


def test_a_checkpoint_by_its_file(tmp_path):
    file = tmp_path / "brats2d" / "fold0_seed1" / "models" / "model.pt"
    write_beside(file)
    with pytest.raises(FileNotFoundError, match="model_settings"):
        trained_detector(str(file))
    file.with_name("model_settings.json").write_text(json.dumps({"spatial_dims": 3}))
    detector = trained_detector(str(file))
    assert (detector.name, detector.bundle, detector.ckpt_file) == ("fold0_seed1", BUNDLES / "brats3d", file)
    assert trained_detector(f"name={file}").name == "name"


def test_tables_by_hand():
    def estimate(value, low=None, high=None):
        return {"value": value, "interval": None if low is None else [low, high]}

    figures = {name: estimate(0.5, 0.25, 0.75) for name in module.SHOWN}
    differences = {name: estimate(0.25, 0.125, 0.375) for name in module.COMPARED}
    differences["best_dice_oracle"] = estimate(-0.25, -0.5, 0.25)
    differences["slice_auroc"] = estimate(None)
    made = {"figures": figures, "nothing_flagged_share": 0.125, "minus": {"image": differences}}
    image = {"figures": {**figures, "dice_at_threshold": estimate(None)}, "nothing_flagged_share": None, "minus": {}}
    counts = {"number_of_cases": 3, "number_of_cases_with_lesion": 2, "modality": "flair", "left_out": {}}
    lines = tables({"ms": {**counts, "methods": {"made": made, "image": image}}}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["ms: 3 scans, 2 with a lesion", "made", *["0.500"] * len(module.SHOWN), "0.125"]
    assert cells[3][:2] == ["", "FLAIR itself, smoothed"]
    assert cells[3][6:7] + cells[3][-1:] == ["-", "-"]
    assert cells[-1][:4] == ["ms", "made", cells[3][1], "**+0.250** [+0.125, +0.375]"]
    assert cells[-1][5] == "-0.250 [-0.500, +0.250]"
    assert cells[-1][-1] == "-"
    assert {len(line) for line in cells[:4]} == {11}


def test_command(scans, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(module, "transfer", lambda *arguments, **more: calls.append((*arguments, *more.values())) or {})
    words = ["--data_dir", str(scans), "--work_dir", str(tmp_path)]
    module.main(words)
    module.main(
        [*words, "--bundle", "brats2d", "brats3d", "--sets", "first,second", "--limit", "2", "--skulls", "second"]
    )
    assert [detector.name for detector in calls[0][0]] == ["brats2d"]
    assert calls[0][1:] == (scans, tmp_path, None, None, ["lgg"], None)
    assert [detector.ckpt_file for detector in calls[1][0]] == list(SHIPPED.values())
    assert calls[1][1:] == (scans, Path(tmp_path), ["first", "second"], 2, ["second"], None)
    assert "| set | score |" in capsys.readouterr().out
