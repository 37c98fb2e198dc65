"""MONAI's `ResampleToMatchd` puts an anomaly map back onto the scan's own grid: what the evaluation relies on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, CopyItemsd, ResampleToMatchd

TRAIN = Path(__file__).parents[2] / "bundles" / "brats3d" / "configs" / "train.json"
PREPARED_SHAPE = (40, 45, 30)
PREPARED = np.diag([2.0, 2.0, 2.0, 1.0])
PREPARED[:3, 3] = -41, -50, -27


def oblique():
    (ca, sa), (cb, sb) = ((np.cos(angle), np.sin(angle)) for angle in (0.3, 0.2))
    return np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cb, -sb], [0, sb, cb]])


def grid(directions, spacing, origin):
    affine = np.eye(4)
    affine[:3, :3] = np.multiply(directions, spacing)
    affine[:3, 3] = origin
    return affine


SCANS = {
    "RAS": (grid(np.eye(3), (1, 1, 1), (-51, -60, -35)), (100, 110, 80)),
    "LPS": (grid(np.diag([-1, -1, 1]), (1, 1, 1), (50, 53, -35)), (100, 110, 80)),
    "thick slices": (grid(np.diag([-1, 1, 1]), (0.9, 0.8, 5), (50, -60.3, -36)), (110, 130, 16)),
    "axes exchanged": (grid([[0, 0, -1], [1, 0, 0], [0, 1, 0]], (1, 1, 1.5), (47, -55, -30)), (105, 70, 66)),
    "oblique": (grid(oblique() @ np.diag([-1, -1, 1]), (1, 1.2, 1.5), (60, 40, -40)), (100, 90, 55)),
    "same grid": (PREPARED, PREPARED_SHAPE),
    "same grid, wider": (grid(np.eye(3), (2, 2, 2), (-51, -60, -37)), (50, 55, 40)),
    "inside": (grid(np.eye(3), (1, 1, 1), (-20, -20, -10)), (20, 30, 15)),
}


def world(affine, shape):
    """Coordinates of all voxels in mm, shape (3, ``*shape``)."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return np.tensordot(affine[:3, :3], voxels, 1) + affine[:3, 3].reshape(3, 1, 1, 1)


def ramp(affine, shape):
    return (np.tensordot([0.3, -0.7, 0.5], world(affine, shape), 1) + 100)[None].astype(np.float32)


def on_scan(anomaly_map, reference):
    """The step as a bundle names it."""
    step = {
        "_target_": "ResampleToMatchd",
        "keys": "anomaly_map",
        "key_dst": "scan",
        "mode": "bilinear",
        "padding_mode": "zeros",
    }
    transform = ConfigParser({"step": step}).get_parsed_content("step")
    return transform({"anomaly_map": anomaly_map, "scan": reference})["anomaly_map"]


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("operations", [[], [{"class": "Spacingd", "id": 1, "orig_size": (9, 9, 9), "extra_info": {}}]])
def test_map_keeps_its_place_in_the_world(scan, operations):
    affine, shape = SCANS[scan]
    anomaly_map = MetaTensor(torch.from_numpy(ramp(PREPARED, PREPARED_SHAPE)), affine=torch.from_numpy(PREPARED))
    anomaly_map.meta["filename_or_obj"] = "case_7_flair.nii.gz"
    anomaly_map.applied_operations = list(operations)
    reference = MetaTensor(torch.zeros(1, *shape, dtype=torch.uint8), affine=torch.from_numpy(affine))
    resampled = on_scan(anomaly_map, reference)
    assert resampled.shape == (1, *shape)
    assert resampled.dtype == torch.float32
    assert torch.equal(resampled.affine, torch.from_numpy(affine))
    assert resampled.meta["filename_or_obj"] == "case_7_flair.nii.gz"
    assert len(anomaly_map.applied_operations) == len(operations)  # the input stays as it was
    np.testing.assert_array_equal(anomaly_map, ramp(PREPARED, PREPARED_SHAPE))

    inverse = np.linalg.inv(PREPARED)
    voxels = np.tensordot(inverse[:3, :3], world(affine, shape), 1) + inverse[:3, 3].reshape(3, 1, 1, 1)
    last = np.reshape(PREPARED_SHAPE, (3, 1, 1, 1)) - 1
    inside = ((voxels >= -1e-9) & (voxels <= last + 1e-9)).all(0)
    outside = ((voxels <= -1 - 1e-9) | (voxels >= last + 1 + 1e-9)).any(0)
    assert inside.mean() > 0.2
    assert (outside.any()) == (scan not in ("same grid", "inside"))
    np.testing.assert_allclose(resampled[0][inside], ramp(affine, shape)[0][inside], atol=1e-4)
    assert np.abs(resampled[0].numpy()[outside]).max(initial=0) == 0


def test_map_fades_to_zero_within_one_voxel_of_its_border():
    """Between the last voxel of the map and the next, which would be 0, it falls linearly."""
    anomaly_map = MetaTensor(torch.ones(1, *PREPARED_SHAPE), affine=torch.from_numpy(PREPARED))
    reference = MetaTensor(torch.zeros(1, 7, 1, 1), affine=torch.from_numpy(grid(np.eye(3), (0.5, 1, 1), (-43, 0, 0))))
    resampled = on_scan(anomaly_map, reference)
    np.testing.assert_allclose(resampled.flatten(), [0, 0.25, 0.5, 0.75, 1, 1, 1], atol=1e-6)


def test_values_stay_within_the_maps_range():
    generator = torch.Generator().manual_seed(0)
    anomaly_map = MetaTensor(torch.rand(1, *PREPARED_SHAPE, generator=generator), affine=torch.from_numpy(PREPARED))
    affine, shape = SCANS["oblique"]
    resampled = on_scan(anomaly_map, MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(affine)))
    assert resampled.min() >= 0
    assert resampled.max() <= 1


@pytest.mark.parametrize("scan", ["LPS", "oblique"])
def test_way_from_file_to_network_and_back(tmp_path, scan):
    """Through the bundle's preprocessing, a batch and an inferer, the map returns to the voxels that it came from."""
    affine, shape = SCANS[scan]
    places = world(affine, shape)
    centre = places[:, shape[0] // 2 - 3, shape[1] // 2 + 5, shape[2] // 2].reshape(3, 1, 1, 1)
    distance = np.linalg.norm(places - centre, axis=0)
    image = np.where(distance < 27, ramp(affine, shape)[0], 0)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), tmp_path / "flair.nii.gz")
    nib.save(nib.Nifti1Image((distance < 5).astype(np.uint8), affine), tmp_path / "seg.nii.gz")
    parser = ConfigParser()
    parser.read_config(TRAIN)
    # without "scaling", so that intensities can be compared
    load, channel_first, *others = [
        step for part in ("loading", "spatial_preprocessing") for step in parser.get_parsed_content(part)
    ]
    prepare = Compose([load, channel_first, CopyItemsd("label", names="scan"), *others])
    item = {"image": [str(tmp_path / "flair.nii.gz")], "label": str(tmp_path / "seg.nii.gz")}
    (batch,) = DataLoader(Dataset([item], prepare), batch_size=1)
    inferer = SlidingWindowInferer(roi_size=(32, 32, 32), overlap=0.5, mode="gaussian")
    batch["anomaly_map"] = inferer(batch["image"], torch.clone)  # which weights in place what it gets
    (item,) = decollate_batch(batch)
    assert item["anomaly_map"].shape != (1, *shape)
    item = ResampleToMatchd("anomaly_map", key_dst="scan", padding_mode="zeros")(item)

    assert item["anomaly_map"].shape == (1, *shape)
    assert item["anomaly_map"].dtype == torch.float32
    np.testing.assert_array_equal(item["anomaly_map"].affine, nib.load(tmp_path / "flair.nii.gz").affine)
    resampled = item["anomaly_map"].numpy()[0]
    core = distance < 22  # twice interpolated, so away from the ball's edge
    np.testing.assert_allclose(resampled[core], image[core], rtol=1e-4)
    assert not resampled[distance > 27 + 10].any()
