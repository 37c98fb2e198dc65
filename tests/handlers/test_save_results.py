"""Results of the scans that an evaluator runs over, saved one by one."""

from __future__ import annotations

import csv
import logging

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, ThreadDataLoader
from monai.engines import EnsembleEvaluator
from monai.transforms import LoadImaged, ThresholdIntensityd
from torch import nn

from ssmctb_monai.data import InvalidCasesError, ValidCases
from ssmctb_monai.handlers import SaveResults
from ssmctb_monai.reports import ScanResults
from ssmctb_monai.transforms import BrainMaskd, CheckCased

NAMES = ["P1", "P2", "P3", "P4"]


class Affine(nn.Module):
    """A network that scales what it sees, and has an accident at a call."""

    def __init__(self, factor=0.25, accident_at=None):
        super().__init__()
        self.factor, self.accident_at, self.calls = factor, accident_at, 0

    def forward(self, image):
        self.calls += 1
        if self.calls == self.accident_at:
            raise MemoryError("no memory left")
        return image * self.factor


@pytest.fixture
def scans(tmp_path):
    """Four scans of 8 x 9 x 7 voxels, two of them with a background of 0 around."""
    items = []
    for index, name in enumerate(NAMES):
        array = np.zeros((8, 9, 7), np.float32)
        array[1:-1, 1:-1, 1:-1] = np.random.default_rng(index).uniform(1, 4, (6, 7, 5))
        path = tmp_path / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 3, 1])), path)
        items.append({"case_id": name, "patient_id": name, "image": [str(path)]})
    return items


def run(scans, folder, loader=ThreadDataLoader, networks=None, **arguments):
    results = ScanResults(folder / "out", {}, threshold=0.5, **arguments)
    transforms = [LoadImaged("image", ensure_channel_first=True), CheckCased(), BrainMaskd()]
    dataset = ValidCases(results.pending(scans), transforms)
    networks = networks or [Affine()]
    EnsembleEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader(dataset, batch_size=1, num_workers=0),
        networks=networks,
        pred_keys=["pred", "reconstruction"][: len(networks)],
        val_handlers=[SaveResults(results, dataset)],
    ).run()
    return results


def table(folder):
    with (folder / "out" / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def load(path):
    return nibabel.load(path).get_fdata(dtype=np.float32)


@pytest.mark.parametrize("loader", [ThreadDataLoader, DataLoader])
def test_every_scan_has_its_own_map(tmp_path, scans, loader):
    run(scans, tmp_path, loader, [Affine(), Affine(2)], save_mask=True, save_reconstruction=True)
    assert list(table(tmp_path)) == NAMES
    for item in scans:
        image, name = load(item["image"][0]), item["case_id"]
        np.testing.assert_allclose(load(tmp_path / "out" / "maps" / f"{name}.nii.gz"), image / 4, atol=1e-6)
        np.testing.assert_array_equal(load(tmp_path / "out" / "masks" / f"{name}.nii.gz"), image / 4 >= 0.5)
        np.testing.assert_allclose(load(tmp_path / "out" / "reconstructions" / f"{name}.nii.gz"), image * 2, atol=1e-6)
        highest = np.sort((image / 4).reshape(-1, 7), axis=0)[-20:].mean(axis=0)
        assert float(table(tmp_path)[name]["anomaly_score"]) == pytest.approx(highest.max(), abs=1e-5)


def test_progress_with_the_time_left(tmp_path, scans, caplog):
    with caplog.at_level(logging.INFO):
        run(scans, tmp_path)
    lines = [record.message for record in caplog.records if record.message.startswith("Scan ")]
    assert [line.split(" |")[0] for line in lines] == [f"Scan {i}/4, P{i}" for i in (1, 2, 3, 4)]
    assert lines[-1].endswith("0:00:00 left")
    assert str(tmp_path / "out") in caplog.text


def test_bad_scans_are_named_and_the_others_done(tmp_path, scans, caplog):
    nibabel.save(nibabel.Nifti1Image(np.full((8, 9, 7), np.nan, np.float32), np.eye(4)), scans[0]["image"][0])
    thin = np.zeros((8, 9, 7), np.float32)
    thin[2:4, 2:4, 2:4] = 3  # too little brain for a score
    nibabel.save(nibabel.Nifti1Image(thin, np.eye(4)), scans[2]["image"][0])
    with caplog.at_level(logging.INFO), pytest.raises(InvalidCasesError) as error:
        run(scans, tmp_path)
    message = str(error.value)
    assert "P1:" in message
    assert "NaN or infinite" in message
    assert "P3 has no result: no axial slice holds 20 voxels of the brain" in message
    assert f"{tmp_path / 'out'} has the results of the others" in message
    assert [bool(row["problem"]) for row in table(tmp_path).values()] == [True, False, True, False]
    assert sorted(path.name for path in (tmp_path / "out" / "maps").iterdir()) == ["P2.nii.gz", "P4.nii.gz"]
    assert "Scan 4/4, P4" in caplog.text


@pytest.mark.parametrize("loader", [ThreadDataLoader, DataLoader])
def test_doubts_of_the_mask_are_in_the_table(tmp_path, scans, loader):
    whole = np.random.default_rng(0).uniform(1, 4, (8, 9, 7)).astype(np.float32)  # no background
    nibabel.save(nibabel.Nifti1Image(whole, np.diag([20.0, 20, 20, 1])), scans[1]["image"][0])
    run(scans, tmp_path, loader)
    warnings = {name: row["warning"] for name, row in table(tmp_path).items()}
    assert [name for name, text in warnings.items() if "no background of one value: 100 %" in text] == ["P2"]


def test_accident_loses_nothing_of_the_scans_before(tmp_path, scans):
    with pytest.raises(MemoryError):
        run(scans, tmp_path, networks=[Affine(accident_at=3)])
    assert list(table(tmp_path)) == ["P1", "P2"]
    network = Affine()
    run(scans, tmp_path, networks=[network])
    assert network.calls == 2
    assert list(table(tmp_path)) == NAMES


def test_nothing_to_do(tmp_path, scans):
    run(scans, tmp_path)
    network = Affine()
    run(scans, tmp_path, networks=[network])
    assert network.calls == 0


def test_failure_of_an_earlier_run_counts_until_it_is_mended(tmp_path, scans):
    good = nibabel.load(scans[1]["image"][0])
    array, affine = good.get_fdata(), good.affine
    nibabel.save(nibabel.Nifti1Image(np.zeros_like(array), affine), scans[1]["image"][0])
    for _ in range(2):
        with pytest.raises(InvalidCasesError, match="P2"):
            run(scans, tmp_path)
    nibabel.save(nibabel.Nifti1Image(array, affine), scans[1]["image"][0])
    run(scans, tmp_path)
    assert table(tmp_path)["P2"]["problem"] == ""


def test_other_keys(tmp_path, scans):
    results = ScanResults(tmp_path / "out", {})
    transforms = [LoadImaged("image", ensure_channel_first=True), BrainMaskd(brain_key="head")]
    dataset = ValidCases(results.pending(scans[:1]), transforms)
    EnsembleEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1),
        networks=[Affine(), Affine(3)],
        pred_keys=["map", "restored"],
        postprocessing=ThresholdIntensityd("map", threshold=0.5, cval=0),
        val_handlers=[SaveResults(results, dataset, map_key="map", brain_key="head", reconstruction_key="restored")],
    ).run()
    image = load(scans[0]["image"][0]) / 4
    np.testing.assert_allclose(load(tmp_path / "out" / "maps" / "P1.nii.gz"), image * (image > 0.5), atol=1e-6)
