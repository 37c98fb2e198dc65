"""Inference on very many scans, without the time of a network: found, checked, read and written."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import ThreadDataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import CopyItemsd, LoadImaged

from benchmarks.measure import Row, growth
from ssmctb_monai.data import SimpleITKReader, ValidCases, find_scans
from ssmctb_monai.handlers import SaveResults
from ssmctb_monai.reports import ScanResults
from ssmctb_monai.transforms import BrainMaskd, CheckCased

COUNT = 1000


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        few, many = ((write_scans(Path(name) / str(count), count), count) for count in (COUNT, 4 * COUNT))
        yield growth("small scans found, checked, read and written; a rerun finds all done", infer, few, many)


def write_scans(folder: Path, count: int) -> Path:
    """Writes small scans, a folder a patient, and returns the folder of all."""
    brain = np.zeros((12, 12, 8), np.int16)
    brain[2:-2, 2:-2, 1:-1] = np.arange(8 * 8 * 6).reshape(8, 8, 6) + 100
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(brain, np.diag([14.0, 14, 18, 1])), folder / "scan.nii.gz")
    content = (folder / "scan.nii.gz").read_bytes()
    (folder / "scan.nii.gz").unlink()
    for index in range(count):
        path = folder / f"P{index:05d}" / f"P{index:05d}_flair.nii.gz"
        path.parent.mkdir()
        path.write_bytes(content)
    return folder


def infer(folder: Path) -> None:
    """Goes over the scans as the bundles' inference does, with images for maps, and once more when all is done."""
    logging.getLogger("ssmctb_monai").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as output_dir:
        for _ in range(2):
            results = ScanResults(output_dir, {"modalities": ["flair"]}, threshold=0.5)
            loading = [LoadImaged("image", SimpleITKReader(), ensure_channel_first=True), CheckCased("image")]
            scans = ValidCases(
                results.pending(find_scans(folder, "flair")), [*loading, BrainMaskd(), CopyItemsd("image", names="map")]
            )
            evaluator = SupervisedEvaluator(
                device="cpu",
                val_data_loader=ThreadDataLoader(scans, batch_size=1, num_workers=0),
                network=torch.nn.Identity(),
                val_handlers=[SaveResults(results, scans, map_key="map")],
            )
            evaluator.logger.setLevel(logging.ERROR)
            evaluator.run()
