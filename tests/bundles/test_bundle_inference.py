"""`inference.json` of both bundles: any scan in, its anomaly map on the scan's own grid out."""

from __future__ import annotations

import csv
import json
import signal
import time
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bundle_runs import ROOT, in_3d, messages, run, start
from monai.utils import set_determinism
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ssmctb_monai.checkpoints import Settings, beside, make_network
from ssmctb_monai.data.readers import read_volume
from ssmctb_monai.files import checksum
from ssmctb_monai.networks.nets import DRAEM
from ssmctb_monai.visualize import find_maps, load_heatmap

POINT = np.array([12.0, -25.0, 18.0])  # of the bright blob, mm, RAS
BLOB = 500  # its height; half a head of 47 mm holds about 8 * 5 * 35 = 1400 intensities of [0, 1]
THRESHOLD = 0.62
SAGITTAL = np.array([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]])  # PSL
GRIDS = {  # rotation, spacing and shape
    "1 mm": (np.eye(3), (1, 1, 1), (110, 120, 100)),
    "thick slices, LPS": (np.diag([-1.0, -1, 1]), (0.9, 0.9, 6), (122, 134, 17)),
    "sagittal slices": (SAGITTAL, (1.2, 1.2, 3), (100, 84, 37)),
    "oblique": (Rotation.from_euler("zyx", [20, -12, 8], degrees=True).as_matrix(), (1.5, 1.1, 2.2), (84, 120, 52)),
    "smaller than a window": (np.eye(3), (3, 3, 3), (13, 13, 13)),
}


def volume(grid):
    """A head that is brighter on the right, with a bright blob at `POINT`, and its affine."""
    rotation, spacing, shape = GRIDS[grid]
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    centre = POINT if grid == "smaller than a window" else np.array([0.0, -10, 5])
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    radius = min(47, 0.47 * (np.abs(affine[:3, :3]) @ shape).min())
    brain = np.linalg.norm(places - centre, axis=-1) < radius
    blob = np.exp(-(((places - POINT) ** 2).sum(axis=-1)) / (2 * 5**2))
    return np.where(brain, 1000 + 5 * places[..., 0] + BLOB * blob, 0).astype(np.int16), affine


def write_nifti(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def itk_image(array, affine):
    image = sitk.GetImageFromArray(array.T)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_mha(path, array, affine):
    sitk.WriteImage(itk_image(array, affine), str(path))


def write_dicom(folder, array, affine):
    folder.mkdir(parents=True)
    image = itk_image(array, affine)
    tags = {"0020|000e": "1.2.3.4.5", "0020|000d": "1.2.3.4", "0020|0052": "1.2.3.6", "0008|0060": "MR"}
    tags |= {"0020|0037": "\\".join(f"{v:.10g}" for v in np.reshape(image.GetDirection(), (3, 3))[:, :2].T.ravel())}
    for z in range(image.GetSize()[2]):
        part = image[:, :, z : z + 1]
        position = image.TransformIndexToPhysicalPoint((0, 0, z))
        own = {"0020|0032": "\\".join(f"{v:.10g}" for v in position), "0020|0013": str(z + 1)}
        for tag, value in {**tags, **own}.items():
            part.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(part)


def save(file, dims, channels, seed=0, **settings):
    """Saves a network that has not been trained, with its settings."""
    torch.manual_seed(seed)
    description = {"_target_": "ssmctb_monai.networks.nets.DRAEM", "spatial_dims": dims, "in_channels": channels}
    description |= {"reconstructive_width": 8, "discriminative_width": 8}
    torch.save(make_network(description).state_dict(), file)
    given = {
        "system": "draem",
        "modalities": ["t1ce", "flair"][-channels:],
        "spatial_dims": dims,
        "spacing": [2, 2, 2],
        "roi_size": [96, 96, 1] if dims == 2 else [32, 32, 32],
        "background": "constant",
        "smoothing": [3, 3, 6] if dims == 2 else 3,
        "block": "ssmctb",
    }
    Settings(**{**given, **settings}, network=description).save(file, checksum(file))


@pytest.fixture(scope="module")
def bundle(bundle, tmp_path_factory):
    """Each bundle, with the checkpoint of a network that has not been trained."""
    folder = tmp_path_factory.mktemp(bundle.name)
    dims = 2 if bundle.name == "brats2d" else 3
    save(folder / "model.pt", dims, 1)
    torch.save({}, folder / "nothing.pt")
    checkpoints = {"ckpt_file": str(folder / "model.pt"), "nothing": str(folder / "nothing.pt")}
    return SimpleNamespace(name=bundle.name, config=bundle / "inference.json", dims=dims, **checkpoints)


@pytest.fixture
def inference(workflow, bundle, tmp_path, monkeypatch):
    """Runs inference in this process; with ``sees`` the map is what the network is shown."""
    monkeypatch.chdir(ROOT)

    def run(dataset_dir, sees=False, **overrides):
        given = {"ckpt_file": bundle.ckpt_file}
        if sees:
            given = {"ckpt_file": bundle.nothing, "network_def": {"_target_": "torch.nn.Identity"}}
            given |= {"smoothing": 0, "normal_score": None}
        given |= {"dataset_dir": str(dataset_dir), "output_dir": str(tmp_path / "out"), "threshold": THRESHOLD}
        made = workflow(bundle.config, "infer", **{**given, **overrides})
        made.run()
        return made

    return run


def table(folder):
    with (folder / "out" / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def load(folder, name, kind="maps"):
    image = nibabel.load(folder / "out" / kind / f"{name}.nii.gz")
    return image.get_fdata(), image.affine


def check_point(found, scan, affine, row):
    """The map's blob lies where the scan's is, in mm, and the row says in which slice."""
    array, own = found
    assert array.shape == scan.shape
    np.testing.assert_allclose(own, affine, atol=1e-4)
    assert (array[scan == 0] == 0).all()
    assert array.max() > 0.75
    upper_half = np.clip(array - (0.5 + array.max()) / 2, 0, None)
    centre = affine[:3, :3] @ np.array(ndimage.center_of_mass(upper_half)) + affine[:3, 3]
    assert np.linalg.norm(centre - POINT) < max(1, np.linalg.norm(affine[:3, :3], axis=0).max() / 4)  # mm
    axis = int(row["slice_axis"])
    assert axis == np.argmax(np.abs(affine[2, :3]) / np.linalg.norm(affine[:3, :3], axis=0))
    expected = np.linalg.solve(affine, [*POINT, 1])[axis]
    assert abs(int(row["slice"]) - expected) < 1.5


# ------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("grid", GRIDS)
def test_a_known_point_lands_where_it_is(inference, tmp_path, grid):
    array, affine = volume(grid)
    write_nifti(tmp_path / "scan.nii.gz", array, affine)
    inference(tmp_path / "scan.nii.gz", sees=True, save_mask=True)
    row = table(tmp_path)["scan"]
    found = load(tmp_path, "scan")
    check_point(found, array, affine, row)
    mask = load(tmp_path, "scan", "masks")[0]
    np.testing.assert_array_equal(mask, (found[0] >= THRESHOLD) & (array > 0))
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert float(row["flagged_ml"]) == pytest.approx(mask.sum() * voxel, rel=1e-4)


@pytest.mark.parametrize("write", [write_mha, write_dicom])
def test_other_files(inference, tmp_path, write):
    array, affine = volume("oblique")
    path = tmp_path / ("scan.mha" if write is write_mha else "series/scan")
    write(path, array, affine)
    inference(path if write is write_mha else path.parent, sees=True)
    assert list(table(tmp_path)) == ["scan"]
    check_point(load(tmp_path, "scan"), array, affine, table(tmp_path)["scan"])


def test_dicom_out(inference, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    array, affine = volume("thick slices, LPS")
    write_dicom(tmp_path / "scans" / "P1", array, affine)
    write_nifti(tmp_path / "scans" / "P2.nii.gz", array, affine)
    with pytest.raises(RuntimeError) as error:
        inference(tmp_path / "scans", sees=True, save_mask=True, save_dicom=True)
    assert "no DICOM series" in messages(error.value)
    assert table(tmp_path)["P1"]["problem"] == ""
    found, _ = load(tmp_path, "P1")
    for kind, expected in {"map": found, "mask": load(tmp_path, "P1", "masks")[0]}.items():
        written = pydicom.dcmread(tmp_path / "out" / "dicom" / f"P1_{kind}.dcm")
        frames = written.PerFrameFunctionalGroupsSequence
        origins = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], float)
        order = np.argsort(origins[:, 2])  # from the feet up, as the scan
        np.testing.assert_allclose(written.pixel_array[order].T, expected, atol=1e-6)
        np.testing.assert_allclose(origins[order[0]], np.diag([-1, -1, 1]) @ affine[:3, 3], atol=1e-3)


# ------------------------------------------------------------------------------------------------------------ results


def test_map_is_what_the_network_says(inference, bundle, tmp_path):
    """On a grid that needs no resampling, beside a computation without the bundle."""
    shape = (48, 48, 32) if bundle.name == "brats3d" else (96, 96, 8)
    affine = np.diag([2.0, 2, 2, 1])
    array = np.random.default_rng(0).integers(100, 200, shape).astype(np.int16)
    write_nifti(tmp_path / "scans" / "scan.nii.gz", array, affine)
    brain = np.ones(shape, np.uint8)
    write_nifti(tmp_path / "scans" / "scan_brainmask.nii.gz", brain, affine)
    write_nifti(tmp_path / "scans" / "scan_flair.nii.gz", array, affine)
    (tmp_path / "scans" / "scan.nii.gz").unlink()
    (tmp_path / "models").mkdir()
    save(tmp_path / "models/model.pt", bundle.dims, 1, smoothing=0)
    ckpt_file = str(tmp_path / "models/model.pt")
    made = inference(tmp_path / "scans", ckpt_file=ckpt_file)
    network = DRAEM(bundle.dims, 1, 8, 8).eval()
    network.load_state_dict(torch.load(ckpt_file, weights_only=True))
    lower, median, upper = np.percentile(array, [25, 50, 75])
    scaled = torch.from_numpy(0.5 + (array - median) / (8 * (upper - lower))).float().clip(0, 1)[None, None]
    with torch.no_grad():
        if bundle.name == "brats2d":
            expected = torch.stack([network(scaled[..., z])[0, 0] for z in range(shape[-1])], dim=-1)
        else:
            expected = made.parser.get_parsed_content("inferer").inferer.inferer(scaled, network)[0, 0]
    found, _ = load(tmp_path, "scan")
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    top = np.sort(found.reshape(-1, shape[-1]), axis=0)[-20:].mean(axis=0)
    row = table(tmp_path)["scan"]
    assert float(row["anomaly_score"]) == pytest.approx(top.max(), abs=1e-5)
    assert int(row["slice"]) == top.argmax()
    save(tmp_path / "models/model.pt", bundle.dims, 1, smoothing=3.0)
    inference(tmp_path / "scans", ckpt_file=ckpt_file)  # a rerun, which must not keep the other map
    smooth, inside = (ndimage.gaussian_filter(each, 1.5, mode="constant") for each in (found, np.ones(shape)))
    smooth /= inside  # the mean of what lies in the brain
    np.testing.assert_allclose(load(tmp_path, "scan")[0], smooth, atol=0.05 * np.abs(found - smooth).max())


def test_reconstruction_has_the_intensities_of_the_scan(inference, tmp_path, monkeypatch):
    array, affine = volume("1 mm")
    write_nifti(tmp_path / "scan.nii.gz", array, affine)
    monkeypatch.setattr(DRAEM, "reconstruct", lambda self, x: x)  # a perfect one
    inference(tmp_path / "scan.nii.gz", save_reconstruction=True)
    reconstruction, own = load(tmp_path, "scan", "reconstructions")
    np.testing.assert_allclose(own, affine)
    deep = ndimage.binary_erosion(array > 0, iterations=4)
    places = np.moveaxis(np.indices(array.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    far = deep & (np.linalg.norm(places - POINT, axis=-1) > 25)
    assert reconstruction[far].mean() == pytest.approx(array[far].mean(), abs=1)
    assert (reconstruction[array == 0] == 0).all()
    assert np.corrcoef(reconstruction[deep], array[deep])[0, 1] > 0.99


def test_maps_only_unless_more_is_asked_for(inference, bundle, tmp_path):
    write_nifti(tmp_path / "scan.nii.gz", *volume("smaller than a window"))
    inference(tmp_path / "scan.nii.gz")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == [".summary.lock", "maps/scan.nii.gz", "settings.json", "summary.csv"]
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["modalities"] == ["flair"]
    assert settings["sha256"] == checksum(bundle.ckpt_file)


def test_brain_is_cut_out_of_a_head(inference, tmp_path, monkeypatch):
    """Whichever network of brains it is, as long as it was not trained on heads."""
    monkeypatch.setattr("ssmctb_monai.transforms.brain.HAS_DEEPBET", False)
    grid = np.stack(np.meshgrid(*(np.arange(size) - size // 2 for size in (80, 96, 40)), indexing="ij"))
    radius = np.sqrt((grid**2 / np.reshape((1, 1.4, 0.3), (3, 1, 1, 1))).sum(axis=0))
    image = np.random.default_rng(0).normal(0, 5, radius.shape) + np.select(
        [radius < 30, radius < 34, radius < 37], [150, 40, 300], 0
    )
    write_nifti(tmp_path / "scan.nii.gz", image.astype(np.float32), np.diag((2.0, 2, 2, 1)))
    inference(tmp_path / "scan.nii.gz", sees=True, background="skull")
    anomaly_map, _ = load(tmp_path, "scan")
    assert (anomaly_map[radius < 28] > 0).mean() > 0.99
    assert (anomaly_map[radius > 34] == 0).all()
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["background"] == "skull"


def test_threshold_of_the_checkpoint(inference, bundle, tmp_path):
    write_nifti(tmp_path / "scan.nii.gz", *volume("smaller than a window"))
    torch.save({}, tmp_path / "own.pt")
    threshold = {"model": {"value": 0.71, "false_positive_rate": 0.01, "source": "made", "median": 0.4}}
    (tmp_path / "own_thresholds.json").write_text(json.dumps(threshold))
    inference(tmp_path / "scan.nii.gz", sees=True, ckpt_file=str(tmp_path / "own.pt"))
    assert table(tmp_path)["scan"]["threshold"] == str(THRESHOLD)  # an override
    default = json.loads(bundle.config.read_text())["threshold"]

    def result(**overrides):
        own = {"ckpt_file": str(tmp_path / "own.pt"), "threshold": default, "save_mask": True, **overrides}
        inference(tmp_path / "scan.nii.gz", sees=True, **own)
        return table(tmp_path)["scan"], *(load(tmp_path, "scan", kind)[0] for kind in ("maps", "masks"))

    raw, raw_map, raw_mask = result(raw_scores=True)
    row, scaled_map, mask = result()  # done anew: they are other maps
    assert (raw["threshold"], row["threshold"]) == ("0.71", "0.5")
    assert 0 < mask.sum() < (raw_map > 0).sum()
    np.testing.assert_array_equal(mask, raw_mask)
    np.testing.assert_array_equal(mask, scaled_map >= 0.5)
    np.testing.assert_allclose(scaled_map, np.interp(raw_map, [0, 0.4, 0.71, 1], [0, 0.05, 0.5, 1]), atol=1e-4)


def test_a_broken_network_finds_no_brain_healthy(inference, bundle, tmp_path):
    """Also where its maps are scaled, so that what is healthy is near 0."""
    write_nifti(tmp_path / "scan.nii.gz", *volume("smaller than a window"))
    state = torch.load(bundle.ckpt_file, weights_only=True)
    torch.save({name: value * torch.nan for name, value in state.items()}, tmp_path / "nan.pt")
    settings = json.loads(beside(bundle.ckpt_file, "settings").read_text())
    Settings(**settings).save(tmp_path / "nan.pt", checksum(tmp_path / "nan.pt"))
    threshold = {"model": {"value": 0.71, "false_positive_rate": 0.01, "source": "made", "median": 0.4}}
    beside(tmp_path / "nan.pt", "thresholds").write_text(json.dumps(threshold))
    with pytest.raises(RuntimeError) as error:
        inference(tmp_path / "scan.nii.gz", ckpt_file=str(tmp_path / "nan.pt"))
    assert "scan has no result: " in messages(error.value)
    assert "NaN" in table(tmp_path)["scan"]["problem"]


def test_without_thresholds(inference, bundle, tmp_path):
    write_nifti(tmp_path / "scan.nii.gz", *volume("smaller than a window"))
    default = json.loads(bundle.config.read_text())["threshold"]
    with pytest.raises(RuntimeError) as error:
        inference(tmp_path / "scan.nii.gz", sees=True, threshold=default)
    assert bundle.nothing.replace(".pt", "_thresholds.json") in messages(error.value)
    assert "--thresholds_file none" in messages(error.value)
    assert not (tmp_path / "out").exists()
    inference(tmp_path / "scan.nii.gz", sees=True, threshold=default, thresholds_file="none")
    row = table(tmp_path)["scan"]
    assert (row["threshold"], row["flagged_ml"], row["problem"]) == ("", "", "")
    assert float(row["anomaly_score"]) > 0.5


def test_several_modalities(inference, bundle, tmp_path):
    array, affine = volume("smaller than a window")
    for kind, image in {"flair": array, "t1ce": 1500 - array, "seg": array > 700}.items():
        write_nifti(tmp_path / "scans" / "P1" / f"P1_{kind}.nii.gz", (image * (array > 0)).astype(np.int16), affine)
    save(tmp_path / "two.pt", bundle.dims, 2)
    overrides = {"ckpt_file": str(tmp_path / "two.pt"), "save_reconstruction": True}
    inference(tmp_path / "scans", **overrides)
    assert list(table(tmp_path)) == ["P1"]
    assert load(tmp_path, "P1", "reconstructions")[0].shape == (*array.shape, 2)


def test_modalities_that_scans_lack(inference, bundle, tmp_path, monkeypatch):
    """The network sees 0 in their place, results tell of it, and notebooks open them."""
    array, affine = volume("smaller than a window")
    other = ((1500 - array) * (array > 0)).astype(np.int16)
    for name, kinds in {"P1": ["t1ce", "flair"], "P2": ["t1ce"], "P3": ["flair"]}.items():
        for kind in kinds:
            write_nifti(tmp_path / "scans" / f"{name}_{kind}.nii.gz", array if kind == "t1ce" else other, affine)
    write_dicom(tmp_path / "scans" / "P4" / "t1ce", array, affine)
    save(tmp_path / "any.pt", bundle.dims, 2, modality_dropout=0.5)
    save(tmp_path / "two.pt", bundle.dims, 2)
    seen = []
    forward = DRAEM.forward
    monkeypatch.setattr(DRAEM, "forward", lambda self, x: seen.append(x.flatten(2).any(2)) or forward(self, x))
    with pytest.raises(RuntimeError) as error:
        inference(tmp_path / "scans", ckpt_file=str(tmp_path / "any.pt"), save_reconstruction=True)
    assert "no t1ce image beside" in messages(error.value)
    rows = table(tmp_path)
    assert {name: row["modalities"] for name, row in rows.items()} == {
        "P1": "t1ce;flair",
        "P2": "t1ce",
        "P3": "",
        "P4": "t1ce",
    }
    present = torch.cat(seen)
    assert present[:, 0].all()
    assert 0.3 < present[:, 1].float().mean() < 0.37  # that of a scan of three
    assert load(tmp_path, "P1", "reconstructions")[0].shape == (*array.shape, 2)
    assert load(tmp_path, "P2", "reconstructions")[0].shape == array.shape
    first, alone, series = find_maps(tmp_path / "out")
    assert [item["modalities"] for item in (first, alone, series)] == [["t1ce", "flair"], ["t1ce"], ["t1ce"]]
    assert list(load_heatmap(alone).reconstructions) == ["t1ce"]
    assert find_maps(tmp_path / "out", tmp_path / "scans")[1]["modalities"] == ["t1ce"]
    whole, lacking = (load(tmp_path, name)[0] for name in ("P1", "P2"))
    assert np.abs(whole - lacking).max() > 1e-4  # the network reads which there are
    np.testing.assert_allclose(load(tmp_path, "P4")[0], lacking, atol=1e-4)
    with pytest.raises(RuntimeError) as error:  # of a network that needs both
        inference(tmp_path / "scans", ckpt_file=str(tmp_path / "two.pt"), output_dir=str(tmp_path / "two"))
    assert "P2:\n  - no flair image beside" in messages(error.value)


def test_ensemble(inference, bundle, tmp_path):
    """The mean of the calibrated maps; each network by the windows of its own training."""
    write_nifti(tmp_path / "scan.nii.gz", *volume("smaller than a window"))
    files = {name: str(tmp_path / f"{name}.pt") for name in ("one", "other", "dims", "coarse")}
    given = {"smoothing": 3, "normal_score": 0.2}
    save(files["one"], bundle.dims, 1, **given)
    save(files["other"], bundle.dims, 1, seed=1, **given)
    save(files["dims"], 5 - bundle.dims, 1, **given)
    save(files["coarse"], bundle.dims, 1, **{**given, "spacing": [3, 3, 3], "normal_score": None})

    def result(*names):
        given = {"ckpt_file": [files[name] for name in names], "thresholds_file": "none"}
        made = inference(tmp_path / "scan.nii.gz", **given)
        return load(tmp_path, "scan")[0], made.parser

    (one, _), (other, _), (mean, _) = result("one"), result("other"), result("one", "other")
    assert np.abs(one - other).max() > 3e-5
    np.testing.assert_allclose(mean, (one + other) / 2, atol=1e-6)
    mixed, parser = result("one", "dims")
    assert np.abs(mixed - one).max() > 3e-5
    (inferer,) = parser.get_parsed_content("inferer").inferer.inferers.values()
    assert type(inferer).__name__ == ("PlanesInferer" if bundle.dims == 3 else "ForegroundInferer")
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["sha256"], settings["ensemble"]) == (checksum(files["one"]), [checksum(files["dims"])])
    with pytest.raises(RuntimeError) as error:
        result("one", "coarse")
    words = "coarse.pt was trained with spacing [3, 3, 3], not [2, 2, 2]; normal_score None, not 0.2"
    assert words in messages(error.value)
    with pytest.raises(RuntimeError) as error:
        inference(tmp_path / "scan.nii.gz", ckpt_file=[files["one"], bundle.nothing], thresholds_file="none")
    assert "nothing_settings.json: training writes it beside the checkpoint" in messages(error.value)
    default = json.loads(bundle.config.read_text())["threshold"]
    with pytest.raises(RuntimeError) as error:
        inference(tmp_path / "scan.nii.gz", ckpt_file=[files["one"], files["other"]], threshold=default)
    assert "run thresholding` with these checkpoints" in messages(error.value)


# ------------------------------------------------------------------------------------------------- what goes wrong


def spoil(folder):
    """Four scans, of which two cannot be used."""
    array, affine = volume("smaller than a window")
    for name in ("a", "b", "c", "d"):
        write_nifti(folder / f"{name}.nii.gz", array, affine)
    (folder / "b.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()[:300])
    write_nifti(folder / "c.nii.gz", np.zeros_like(array), affine)


def test_a_bad_scan_does_not_stop_the_others(inference, tmp_path):
    spoil(tmp_path / "scans")
    with pytest.raises(RuntimeError) as error:
        inference(tmp_path / "scans", sees=True)
    assert "b.nii.gz cannot be read" in messages(error.value)
    assert "c.nii.gz holds nothing but background" in messages(error.value)
    rows = table(tmp_path)
    assert [bool(rows[name]["problem"]) for name in "abcd"] == [False, True, True, False]
    assert "b.nii.gz" in rows["b"]["problem"]
    assert sorted(path.name for path in (tmp_path / "out" / "maps").iterdir()) == ["a.nii.gz", "d.nii.gz"]


def test_nothing_left_to_do(inference, tmp_path, caplog):
    write_nifti(tmp_path / "scan.nii.gz", *volume("smaller than a window"))
    inference(tmp_path / "scan.nii.gz", sees=True)
    file = tmp_path / "out" / "maps" / "scan.nii.gz"
    before = file.stat().st_mtime_ns
    with caplog.at_level("INFO"):
        inference(tmp_path / "scan.nii.gz", sees=True)
    assert "1 of 1 scans are done already" in caplog.text
    assert file.stat().st_mtime_ns == before


def test_results_inside_the_folder_of_the_scans_are_no_scans(inference, tmp_path):
    write_nifti(tmp_path / "scans" / "scan.nii.gz", *volume("smaller than a window"))
    for _ in range(2):
        inference(tmp_path / "scans", sees=True, output_dir=str(tmp_path / "scans" / "results"), save_mask=True)
    with (tmp_path / "scans" / "results" / "summary.csv").open(newline="") as file:
        assert [row["case_id"] for row in csv.DictReader(file)] == ["scan"]


# ------------------------------------------------------------------------------------------------------ the command


def arguments(bundle, folder):
    places = {"dataset_dir": folder / "scans", "output_dir": folder / "out"}
    return {**places, "ckpt_file": bundle.ckpt_file, "threshold": THRESHOLD}


@pytest.mark.process
@in_3d
def test_killed_command_and_rerun(bundle, tmp_path):
    """Killed behind the second scan; the rerun does the others, and the exit status tells of the bad one."""
    spoil(tmp_path / "scans")
    for name in ("0", "1", "2"):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", *volume("smaller than a window"))
    process = start(bundle.name, "inference", **arguments(bundle, tmp_path))
    for line in process.stdout:
        if "Scan 2/7" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait(60)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "maps").glob("[!.]*")}
    assert {"0.nii.gz", "1.nii.gz"} <= done.keys()
    assert len(done) < 5
    for name in done:
        read_volume(tmp_path / "out" / "maps" / name)  # whole
    time.sleep(0.01)
    result = run(bundle.name, "inference", **arguments(bundle, tmp_path))
    assert result.returncode == 1
    assert "b.nii.gz" in result.stderr
    assert "c.nii.gz holds nothing but background" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "maps").iterdir()) == [f"{n}.nii.gz" for n in "012ad"]
    for name, before in done.items():
        assert (tmp_path / "out" / "maps" / name).stat().st_mtime_ns == before
    rows = table(tmp_path)
    assert [name for name, row in rows.items() if row["problem"]] == ["b", "c"]
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [".summary.lock"]
    assert f"Using the checkpoint {bundle.ckpt_file}." in result.stdout


def test_missing_checkpoint(inference, tmp_path):
    write_nifti(tmp_path / "scan.nii.gz", *volume("smaller than a window"))
    with pytest.raises(RuntimeError) as error:
        inference(tmp_path / "scan.nii.gz", ckpt_file=str(tmp_path / "no.pt"))
    assert "train first, or name a checkpoint" in messages(error.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(autouse=True)
def determinism():
    yield
    set_determinism(None)
