"""Very many labelled cases, found, split, checked and cached for a training, and evaluated, in linear time."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from benchmarks.measure import Row, growth

FEW, MANY = 100, 1000


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        few, many = ((write_cases(Path(name) / str(count), count), count) for count in (FEW, MANY))
        yield growth(
            "small cases found, split by patient, checked and cached; once more from the cache", prepare, few, many
        )
    what = "small cases evaluated, all metrics, with intervals from 100 resamples"
    yield growth(what, evaluate, (FEW, FEW), (MANY, MANY))


def write_cases(folder: Path, count: int) -> Path:
    """Writes small cases as BRATS has them, and returns the folder of all."""
    brain = np.zeros((12, 12, 8), np.int16)
    brain[2:-2, 2:-2, 1:-1] = np.arange(8 * 8 * 6).reshape(8, 8, 6) + 100
    for index in range(count):
        case = folder / f"P{index:05d}"
        case.mkdir(parents=True)
        label = np.zeros(brain.shape, np.uint8)
        label[4:6, 4:6, 1 + index % 6] = 1
        for kind, array in {"flair": np.roll(brain, index % 7, axis=0), "seg": label}.items():
            nibabel.save(nibabel.Nifti1Image(array, np.diag([14.0, 14, 18, 1])), case / f"{case.name}_{kind}.nii.gz")
    return folder


def prepare(folder: Path) -> None:
    """Finds and splits the cases of a folder, and caches those that the check lets pass, as a training does, twice."""
    from monai.transforms import Compose, EnsureTyped, LoadImaged

    from ssmctb_monai.data import PreparedDataset, SimpleITKReader, check_cases, find_cases, split_patients

    logging.getLogger("ssmctb_monai").setLevel(logging.ERROR)
    keys = ["image", "label"]
    loading = LoadImaged(keys, SimpleITKReader(), ensure_channel_first=True)
    transform = Compose([loading, EnsureTyped(keys, track_meta=False)])
    with tempfile.TemporaryDirectory() as cache_dir:
        for _ in range(2):
            parts = split_patients(find_cases(folder))
            cases = [case for part in parts.values() for case in part]
            problems = check_cases(cases, ["flair"])
            items = [
                {"case_id": case.case_id, "image": str(case.images["flair"]), "label": str(case.label)}
                for case in cases
                if case.case_id not in problems
            ]
            if len(items) != len(cases):
                raise ValueError(f"{len(cases) - len(items)} cases are not as they were written.")
            dataset = PreparedDataset(items, transform, cache_dir)
            for index in range(len(dataset)):
                dataset[index]


def evaluate(count: int) -> None:
    """Evaluates small volumes."""
    from ssmctb_monai.metrics import AnomalyEvaluation, EvaluationSettings

    rng = np.random.default_rng(0)
    evaluation = AnomalyEvaluation({"map": 0.9}, EvaluationSettings(resamples=100))
    brain = np.ones((24, 24, 16), bool)
    for index in range(count):
        label = np.zeros(brain.shape, np.uint8)
        label[4:9, 4:9, 2 + index % 8 :][..., :4] = 1
        evaluation.add(f"case {index}", {"map": rng.random(brain.shape, np.float32) * 0.7 + 0.3 * label}, label, brain)
    evaluation.estimates("map")
