"""Data sets: prepared once, cached safely, and reproducible by seed, epoch and index."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import DataLoader, DistributedSampler, ThreadDataLoader, get_track_meta
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureTyped, LoadImaged, RandFlipd, Transform

from ssmctb_monai.data import (
    InvalidCasesError,
    LesionFreeDataset,
    PreparedDataset,
    SimpleITKReader,
    ValidCases,
    datasets,
    load_datalist,
)
from ssmctb_monai.data.datasets import fingerprint
from ssmctb_monai.files import is_undamaged
from ssmctb_monai.transforms import (
    DonorSource,
    LesionFreePositionsd,
    PerlinShape,
    RandAnomaly,
    RandAnomalyd,
    RandLesionFreeCropd,
    RandSlicesd,
)


def case(name, lesion=False, size=14):
    rng = np.random.default_rng(sum(map(ord, name)))
    label = np.full((1, size, size), lesion, dtype=np.uint8)
    return {
        "case_id": name,
        "image": rng.random((1, size, size), dtype=np.float32),
        "label": label,
        "brain": np.ones((1, size, size), np.uint8),
    }


class Counted(Transform):
    """Counts calls in a file, so that it pickles alike however often it was called, and fails for some cases."""

    def __init__(self, log, failing=()):
        self.log, self.failing = str(log), tuple(failing)

    def __getstate__(self):
        return {"log": self.log}  # the failing cases are not part of the transform's identity

    def __call__(self, data):
        with open(self.log, "a") as file:
            file.write(data["case_id"] + "\n")
        if data["case_id"] in self.failing:
            raise ValueError("broken header")
        return data

    def calls(self):
        return sorted(open(self.log).read().split()) if os.path.exists(self.log) else []


ENSURE = EnsureTyped(keys=["image", "label", "brain"], track_meta=False)


def lesion_free_transforms(*first):
    return Compose(
        [
            *first,
            LesionFreePositionsd(roi_size=8),
            ENSURE,
            RandLesionFreeCropd(roi_size=8, num_samples=2),
            RandFlipd(keys=["image", "brain"], prob=0.5, spatial_axis=0),
            RandAnomalyd(anomaly=RandAnomaly(spatial_dims=2, prob=0.75)),
        ]
    )


# --------------------------------------------------------------------------------------------------------------- cache


def test_items_are_the_transformed_cases_in_their_order(tmp_path):
    cases = [case(name) for name in ("c", "a", "b")]
    dataset = PreparedDataset(cases, [ENSURE], tmp_path / "cache")
    assert len(dataset) == 3
    for item, expected in zip(dataset, cases, strict=True):
        assert item["case_id"] == expected["case_id"]
        np.testing.assert_array_equal(item["image"], expected["image"])


def test_cache_is_filled_at_once_and_used_again(tmp_path):
    log = Counted(tmp_path / "log")
    cases = [case(name) for name in "abcde"]
    PreparedDataset(cases, [log, ENSURE], tmp_path / "cache")
    assert log.calls() == list("abcde")
    again = PreparedDataset(cases, [log, ENSURE], tmp_path / "cache")
    assert [item["case_id"] for item in again] == list("abcde")
    assert log.calls() == list("abcde")


def test_other_transforms_and_other_data_make_other_files(tmp_path):
    def count(cases, *transforms):
        PreparedDataset(cases, [*transforms, ENSURE], tmp_path)
        return len(list(tmp_path.iterdir()))

    assert count([case("a")], LesionFreePositionsd(roi_size=8)) == 1
    assert count([case("a")], LesionFreePositionsd(roi_size=8)) == 1
    assert count([case("a")], LesionFreePositionsd(roi_size=7)) == 2
    assert count([case("a"), case("b")], LesionFreePositionsd(roi_size=8)) == 3


SCRIPT = """
import sys
import nibabel, numpy as np
from monai.transforms import Compose, EnsureTyped, LoadImaged, Orientationd, SelectItemsd, Spacingd
from ssmctb_monai.data import LesionFreeDataset, SimpleITKReader
from ssmctb_monai.transforms import BrainMaskd, LesionFreePositionsd, RandLesionFreeCropd, RobustScaleIntensityd

def make(folder):
    items = [{"case_id": n, "image": f"{folder}/{n}.nii", "label": f"{folder}/{n}_seg.nii"} for n in sys.argv[2]]
    keys = ["image", "label", "brain"]
    return LesionFreeDataset(items, Compose([
        LoadImaged(keys, reader=SimpleITKReader(), ensure_channel_first=True, allow_missing_keys=True),
        BrainMaskd(),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=(1.5, 1.5, 1.5), mode=("bilinear", "bilinear", "nearest")),
        RobustScaleIntensityd(),
        LesionFreePositionsd(roi_size=4),
        SelectItemsd([*keys, "lesion_free_positions"]),
        EnsureTyped(keys, track_meta=False),
        RandLesionFreeCropd(roi_size=4),
    ]), f"{folder}/cache", seed=3)

print([float(crops[0]["image"].sum()) for crops in make(sys.argv[1])])
"""


@pytest.mark.process
def test_processes_share_a_cache(tmp_path):
    """Two trainings at a time, and one after them: names of entries and samples depend on none; no entry is torn."""
    names = "abcdefghijkl"
    for name in names:
        volume = np.random.default_rng(ord(name)).integers(1, 999, (12, 12, 12)).astype(np.int16)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii")
        nib.save(nib.Nifti1Image(np.zeros_like(volume), np.eye(4)), tmp_path / f"{name}_seg.nii")
    (tmp_path / "script.py").write_text(SCRIPT)
    killed, running = (tmp_path / "cache" / f".unfinished-{name}" for name in ("killed", "running"))
    for folder in (killed, running):
        folder.mkdir(parents=True)
        (folder / "half.pt").write_text("half")
    for path in (killed / "half.pt", killed):
        os.utime(path, (0, 0))

    def start(hash_seed):
        words = [sys.executable, tmp_path / "script.py", tmp_path, names]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    written, outputs = [], []
    for hash_seeds in ("12", "3"):
        processes = [start(hash_seed) for hash_seed in hash_seeds]
        for process in processes:
            output, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            outputs.append(output.splitlines()[-1])
        written.append({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.pt")})
    assert len(written[0]) == len(names)
    assert written[0] == written[1]
    assert all(is_undamaged(entry) for entry in written[1])
    assert outputs == outputs[:1] * 3
    assert [path.name for path in (tmp_path / "cache").glob(".*")] == [running.name]


@pytest.mark.parametrize("failing", ["a", "d", "f"])
def test_a_failing_case_is_named_and_the_others_stay_cached(tmp_path, failing):
    cases = [case(name) for name in "abcdef"]
    with pytest.raises(InvalidCasesError, match=rf"(?s){failing}:.*cannot be prepared: .*broken header"):
        PreparedDataset(cases, [Counted(tmp_path / "first", failing), ENSURE], tmp_path / "cache")
    log = Counted(tmp_path / "first")
    before = len(log.calls())
    assert len(PreparedDataset(cases, [log, ENSURE], tmp_path / "cache")) == 6
    assert len(log.calls()) == before + 1  # only the one that had failed


@pytest.mark.parametrize(
    ("rank", "size", "order"), [(0, 2, "abcde"), (1, 2, "cdeab"), (2, 3, "deabc"), (7, 8, "eabcd")]
)
def test_processes_start_at_different_cases(tmp_path, monkeypatch, rank, size, order):
    """So that they share the work; what comes out is the same in each."""
    monkeypatch.setattr(datasets.idist, "get_rank", lambda: rank)
    monkeypatch.setattr(datasets.idist, "get_world_size", lambda: size)
    log = Counted(tmp_path / "log", failing="b")
    dataset = PreparedDataset([case(name) for name in "abcde"], [log, ENSURE], tmp_path / "cache", 1, skip_invalid=True)
    assert (tmp_path / "log").read_text().split() == list(order)
    assert [item["case_id"] for item in dataset] == list("acde")


def test_entries_appear_as_a_whole(tmp_path, monkeypatch):
    """Another process may look while a large entry is copied from the folder of temporary files."""
    targets = []

    def move(source, target):
        targets.append(Path(target))
        Path(source).rename(target)
        assert not list((tmp_path / "cache").glob("*.pt"))

    monkeypatch.setattr("monai.data.dataset.shutil.move", move)
    PreparedDataset([case("a")], [ENSURE], tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    assert [target.name for target in targets] == [entry.name]


def _flip(path):
    """Change a voxel by what a damaged disk does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "corrupt",
    [
        pytest.param(lambda path: path.write_bytes(b"no checkpoint at all"), id="garbage"),
        pytest.param(_truncate, id="truncated"),
        pytest.param(_flip, id="another bit"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt cache file")
def test_a_corrupted_cache_file_is_remade(tmp_path, corrupt):
    """A run killed while it wrote the file, or a full disk, leaves such files."""
    cases = [case(name) for name in "ab"]
    PreparedDataset(cases, [ENSURE], tmp_path)
    for path in list(tmp_path.iterdir()):
        corrupt(path)
    for _ in range(2):
        dataset = PreparedDataset(cases, [ENSURE], tmp_path)
        for item, expected in zip(dataset, cases, strict=True):
            np.testing.assert_array_equal(item["image"], expected["image"])
    assert all(torch.load(path, weights_only=True)["case_id"] in "ab" for path in tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError("no memory")])
def test_a_full_disk_leaves_no_case_out(tmp_path, monkeypatch, error):
    def fail(*args, **keywords):
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(type(error), match=r"no memory|No space left"):
        PreparedDataset([case("a")], [ENSURE], tmp_path, skip_invalid=True)

    def load(item):
        raise error

    with pytest.raises(type(error), match=r"no memory|No space left"):
        list(ValidCases([case("a")], load))


# ------------------------------------------------------------------------------------------------- cases left out


def test_cases_without_positions_are_left_out_with_a_count(tmp_path, caplog):
    cases = [case("a"), case("b", lesion=True), case("c"), case("d", lesion=True), case("e")]
    with caplog.at_level(logging.WARNING, logger="ssmctb_monai"):
        dataset = LesionFreeDataset(cases, lesion_free_transforms(), tmp_path)
    assert [item["case_id"] for item in dataset.data] == ["a", "c", "e"]
    assert [dataset[index][0]["case_id"] for index in range(len(dataset))] == ["a", "c", "e"]
    assert "2 of 5 cases" in caplog.text
    assert "b, d" in caplog.text


def test_cases_without_a_slice_of_the_planes_are_left_out(tmp_path, caplog):
    """A rod of lesion leaves no slice across it: in b across the axial ones, in c across the coronal ones."""
    cases = [{**case(name), **dict.fromkeys(("image", "brain"), np.ones((1, 6, 6, 6), np.uint8))} for name in "abc"]
    for item, lesion in zip(cases, (np.s_[:0], np.s_[0, 2, 2, :], np.s_[0, 2, :, 2]), strict=True):
        item["label"] = np.zeros((1, 6, 6, 6), np.uint8)
        item["label"][lesion] = 1
    left = {}
    for planes in ("axial", "coronal", "sagittal"):
        draw = RandSlicesd(roi_size=(6, 6), planes=planes)
        dataset = LesionFreeDataset(cases, Compose([LesionFreePositionsd(roi_size=(6, 6, 1)), ENSURE, draw]), tmp_path)
        left[planes] = [dataset[index][0]["case_id"] for index in range(len(dataset))]
    assert left == {"axial": ["a", "c"], "coronal": ["a", "b"], "sagittal": ["a", "b", "c"]}
    assert "1 of 3 cases have no lesion-free position and are left out: c." in caplog.text


def test_nothing_is_logged_where_all_cases_are_used(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ssmctb_monai"):
        LesionFreeDataset([case("a")], lesion_free_transforms(), tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("ssmctb_monai")]


def test_no_case_with_positions(tmp_path):
    with pytest.raises(ValueError, match="None of 2 cases"):
        LesionFreeDataset([case("a", lesion=True), case("b", lesion=True)], lesion_free_transforms(), tmp_path)


# ------------------------------------------------------------------------------------------------------------- samples


def content(items):
    """Everything in the samples of one case, in an order of its own."""
    return [(key, np.asarray(item[key]).tolist()) for item in items for key in sorted(item) if key != "case_id"]


@pytest.fixture
def dataset(tmp_path):
    return LesionFreeDataset([case(name) for name in "abcd"], lesion_free_transforms(), tmp_path, seed=5)


def by_case(dataset, order, num_workers):
    """Samples by case, as the loader hands them out."""
    loader = DataLoader(dataset, batch_size=1, sampler=order, num_workers=num_workers)
    batches = list(loader)
    assert len(batches) == len(order)
    return {
        batch["case_id"][0]: [(key, batch[key].numpy().tolist()) for key in ("image", "image_clean", "anomaly_mask")]
        for batch in batches
    }


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_samples_depend_neither_on_workers_nor_on_order(dataset, num_workers, order):
    dataset.set_epoch(4)
    expected = by_case(dataset, [3, 2, 1, 0], 0)
    assert len({str(samples) for samples in expected.values()}) == 4
    torch.manual_seed(num_workers)
    np.random.seed(num_workers)  # noqa: NPY002 (MONAI's and others' global generator)
    assert by_case(dataset, order, num_workers) == expected


def test_samples_depend_on_nothing_drawn_before(dataset):
    first = content(dataset[2])
    for index in (0, 3, 2, 1):
        dataset[index]
    assert content(dataset[2]) == first


def test_samples_of_a_new_object_are_the_same(dataset, tmp_path):
    other = LesionFreeDataset([case(name) for name in "abcd"], lesion_free_transforms(), tmp_path / "other", seed=5)
    for epoch in (0, 7):
        dataset.set_epoch(epoch)
        other.set_epoch(epoch)
        assert [content(dataset[index]) for index in range(4)] == [content(other[index]) for index in range(4)]


def test_random_transforms_carry_no_metadata(tmp_path):
    class Broken(RandFlipd):
        def __call__(self, data, lazy=None):
            raise ValueError("broken")

    transform = Compose(
        [LesionFreePositionsd(roi_size=8), ENSURE, RandLesionFreeCropd(roi_size=8), RandFlipd("image", 1.0)]
    )
    dataset = LesionFreeDataset([case("a")], transform, tmp_path)
    assert {type(value) for value in dataset[0][0].values()} == {str, torch.Tensor}
    dataset.transform = Compose([*transform.transforms, Broken("image")])
    with pytest.raises(RuntimeError):
        dataset[0]
    assert get_track_meta()


def test_samples_differ_between_epochs_seeds_and_indices(tmp_path):
    twin = case("a")
    samples = []
    for seed in (0, 1, 2):
        dataset = LesionFreeDataset([twin, twin, twin], lesion_free_transforms(), tmp_path, seed=seed)
        for epoch in (0, 1, 2):
            dataset.set_epoch(epoch)
            samples += [str(content(dataset[index])) for index in range(3)]
    assert len(set(samples)) == 27  # also (seed 1, epoch 0) and (seed 0, epoch 1) differ


def test_crops_of_one_case_differ_from_each_other(dataset):
    one, other = dataset[0]
    assert not torch.equal(one["image_clean"], other["image_clean"])


def donor_transforms(source):
    anomaly = RandAnomaly(spatial_dims=2, prob=1.0, shapes=PerlinShape(coverage=(0.5, 0.5)), sources=source)
    crop = RandLesionFreeCropd(roi_size=8, num_samples=2)
    return Compose([LesionFreePositionsd(roi_size=8), ENSURE, crop, RandAnomalyd(anomaly=anomaly)])


def test_donors_are_crops_of_other_cases_whatever_the_workers(tmp_path):
    cases = [case(name) for name in "abcde"]
    for level, item in enumerate(cases, start=1):
        item["image"] = np.full_like(item["image"], level / 10)
    source = DonorSource(opacity=(1.0, 1.0))
    dataset = LesionFreeDataset(cases, donor_transforms(source), tmp_path, seed=3, donors=3)
    pairs = set()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        expected = [dataset[index] for index in range(5)]
        for index, crops in enumerate(expected):
            for crop in crops:
                assert "donors" not in crop
                pairs.add((index, round(10 * float(crop["image"][crop["anomaly_mask"] > 0].median())) - 1))
    assert {donor for _, donor in pairs} == set(range(5))
    assert all(index != donor for index, donor in pairs)
    assert [content(dataset[index]) for index in (4, 1)] == [content(expected[index]) for index in (4, 1)]
    reference = by_case(dataset, [3, 2, 1, 0], 0)
    assert by_case(dataset, [0, 1, 2, 3], 2) == reference
    other = LesionFreeDataset(cases, donor_transforms(source), tmp_path, seed=4, donors=3)
    other.set_epoch(7)
    assert by_case(other, [3, 2, 1, 0], 0) != reference


def test_donors_are_of_other_patients(tmp_path):
    """Of two patients with two cases each."""
    cases = [{**case(name), "patient_id": name[0]} for name in ("a1", "a2", "b1", "b2")]
    for level, item in enumerate(cases, start=1):
        item["image"] = np.full_like(item["image"], level / 10)
    dataset = LesionFreeDataset(cases, donor_transforms(DonorSource(opacity=(1.0, 1.0))), tmp_path, donors=4)
    for epoch in range(4):
        dataset.set_epoch(epoch)
        for index in range(4):
            for crop in dataset[index]:
                donor = round(10 * float(crop["image"][crop["anomaly_mask"] > 0].median())) - 1
                assert donor // 2 != index // 2
    one_patient = [{**item, "patient_id": "a"} for item in cases]
    with pytest.raises(ValueError, match="at least two patients"):
        LesionFreeDataset(one_patient, donor_transforms(DonorSource()), tmp_path, donors=2)


def test_donors_change_nothing_else(tmp_path):
    """Samples whose sources take nothing from donors are the same with them."""
    cases = [case(name) for name in "abc"]
    datasets = [
        LesionFreeDataset(cases, lesion_free_transforms(), tmp_path, seed=5, donors=donors) for donors in (0, 2)
    ]
    assert content(datasets[0][1]) == content(datasets[1][1])


def test_ill_donors(tmp_path):
    for cases, transform in (
        ([case("a")], lesion_free_transforms()),
        ([case("a"), case("b")], Compose([LesionFreePositionsd(roi_size=8), ENSURE])),
    ):
        with pytest.raises(ValueError, match="at least two patients and a RandAnomalyd"):
            LesionFreeDataset(cases, transform, tmp_path, donors=2)
    with pytest.raises(RuntimeError) as error:
        LesionFreeDataset([case("a"), case("b")], donor_transforms(DonorSource()), tmp_path)[0]
    assert "LesionFreeDataset(donors=8)" in datasets._reason(error.value)


def test_all_positions_are_reached_over_epochs(tmp_path):
    """Seeds that follow each other give crops all over the case."""
    transform = Compose(
        [LesionFreePositionsd(roi_size=(12, 14)), ENSURE, RandLesionFreeCropd(roi_size=(12, 14), num_samples=1)]
    )
    source = case("a")
    dataset = LesionFreeDataset([source], transform, tmp_path)
    starts = []
    for epoch in range(60):
        dataset.set_epoch(epoch)
        crop = dataset[0][0]["image"][0]
        starts += [start for start in range(3) if np.array_equal(crop, source["image"][0, start : start + 12])]
    assert len(starts) == 60
    assert min(np.bincount(starts, minlength=3)) >= 8


def test_distributed_sampler_of_one_process_shuffles_by_epoch(dataset):
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=0)
    orders = set()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.add(tuple(sampler))
        assert sorted(sampler) == [0, 1, 2, 3]
    assert len(orders) > 1


class FailsUnless(Transform):
    def __init__(self, case_id):
        self.case_id = case_id

    def __call__(self, item):
        if item["case_id"] != self.case_id:
            raise ValueError("broken header")
        return item


class ReadsNumber(Transform):
    def __call__(self, item):
        return {"value": torch.tensor(float(Path(item["image"][0]).read_text()))}


def test_failing_cases_are_named_all_at_once_or_skipped(tmp_path, caplog):
    cases = [case(name) for name in "abc"]

    fail = FailsUnless("b")
    with pytest.raises(InvalidCasesError, match=r"(?s)a:.*c:"):
        PreparedDataset(cases, [fail, ENSURE], tmp_path / "cache")
    dataset = PreparedDataset(cases, [fail, ENSURE], tmp_path / "cache", skip_invalid=True)
    assert [item["case_id"] for item in dataset.data] == ["b"]
    assert "broken header" in caplog.text
    with pytest.raises(ValueError, match="None of 2 cases"):
        PreparedDataset([cases[0], cases[2]], [fail, ENSURE], tmp_path / "cache", skip_invalid=True)


def test_a_changed_file_is_prepared_again(tmp_path):
    file = tmp_path / "image.txt"
    item = {"case_id": "a", "image": [str(file)]}
    for text in ("1", "22"):
        file.write_text(text)
        assert float(PreparedDataset([item], [ReadsNumber()], tmp_path / "cache")[0]["value"]) == float(text)


# -------------------------------------------------------------------------------------------------- case after case


class Prepare(Transform):
    """Fails for some cases in different ways, and counts the cases prepared."""

    errors = {"b": ValueError("broken header"), "d": KeyError("label"), "e": OSError("")}  # noqa: RUF012

    def __init__(self):
        self.count = 0

    def __call__(self, item):
        self.count += 1
        if item["case_id"] in self.errors:
            raise self.errors[item["case_id"]]
        return {"case_id": item["case_id"], "image": torch.full((1, 3, 3), float(ord(item["case_id"])))}


def named(names):
    return [{"case_id": name} for name in names]


PROBLEMS = {"b": "broken header", "d": "KeyError: 'label'", "e": "OSError: "}
LOADERS = pytest.mark.parametrize("loader", [DataLoader, ThreadDataLoader, torch.utils.data.DataLoader])


@LOADERS
def test_sound_cases_are_yielded_in_order_and_the_others_reported(loader, caplog):
    cases = ValidCases(named("abcdef"), Prepare())
    batches = list(loader(cases, batch_size=1))
    assert [batch["case_id"] for batch in batches] == [["a"], ["c"], ["f"]]
    assert [batch["image"].shape for batch in batches] == [(1, 1, 3, 3)] * 3
    assert [batch["image"][0, 0, 0, 0].item() for batch in batches] == [97, 99, 102]
    assert cases.problems == PROBLEMS
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        f"{name} cannot be used: {problem}" for name, problem in PROBLEMS.items()
    ]


@LOADERS
def test_problems_are_those_of_the_last_iteration(loader):
    data = named("ab")
    cases = ValidCases(data, Prepare())
    batches = loader(cases, batch_size=1)
    problems = cases.problems
    for _ in range(2):
        assert len(list(batches)) == 1
        assert problems == {"b": "broken header"}
    data[1]["case_id"] = "c"  # repaired
    assert len(list(batches)) == 2
    assert cases.problems is problems
    assert problems == {}


def test_cases_are_prepared_when_they_are_asked_for():
    prepare = Prepare()
    iterator = iter(DataLoader(ValidCases(named("abc"), prepare), batch_size=1))
    assert prepare.count == 0
    next(iterator)
    assert prepare.count == 1
    next(iterator)
    assert prepare.count == 3


def test_transforms_may_be_a_list_or_one():
    for transform in ([Prepare()], Compose([Prepare()]), Compose([Compose([Prepare()])])):
        cases = ValidCases(named("abdef"), transform)
        assert [item["case_id"] for item in cases] == ["a", "f"]
        assert cases.problems == PROBLEMS


def test_items_with_problems_are_reported_and_not_prepared():
    prepare = Prepare()
    data = [{"case_id": "a", "problems": ["no t1 image", "a.nii does not exist"]}, *named("c")]
    cases = ValidCases(data, prepare)
    assert [item["case_id"] for item in cases] == ["c"]
    assert cases.problems == {"a": "no t1 image; a.nii does not exist"}
    assert prepare.count == 1


def test_problems_are_raised_together_where_there_are_any():
    cases = ValidCases(named("abcdef"), Prepare())
    cases.raise_problems("none yet")
    assert len(list(cases)) == 3
    with pytest.raises(InvalidCasesError, match=r"The others are done\.$") as error:
        cases.raise_problems("The others are done.")
    assert error.value.problems == {name: [problem] for name, problem in PROBLEMS.items()}


def test_errors_of_the_loop_itself_are_not_swallowed():
    cases = ValidCases(named("ac"), Prepare())
    iterator = iter(cases)
    next(iterator)
    with pytest.raises(ValueError, match="out of memory"):
        iterator.throw(ValueError("out of memory"))
    assert cases.problems == {}


class Interrupted(Transform):
    def __call__(self, item):
        raise KeyboardInterrupt


def test_an_interruption_ends_the_run():
    with pytest.raises(KeyboardInterrupt):
        list(ValidCases(named("ac"), Interrupted()))


def test_loader_with_workers_is_refused():
    with pytest.raises(RuntimeError, match=r"num_workers=0.*ThreadDataLoader"):
        list(DataLoader(ValidCases(named("abc"), Prepare()), batch_size=1, num_workers=1))


@pytest.mark.parametrize("names", ["abcde", "ca", "bde"])
@pytest.mark.parametrize("loader", [DataLoader, ThreadDataLoader])
def test_evaluator_meets_every_sound_case_once(loader, names):
    """Cases that fail would make an evaluator that counts on a length start the data anew to fill its epoch."""
    cases, seen = ValidCases(named(names), Prepare()), []

    def prepare_batch(batch, *_, **__):
        seen.extend(batch["case_id"])
        return batch["image"], None

    data_loader = loader(cases, batch_size=1)
    network = torch.nn.Identity()
    SupervisedEvaluator("cpu", val_data_loader=data_loader, network=network, prepare_batch=prepare_batch).run()
    assert seen == [name for name in names if name not in PROBLEMS]
    assert cases.problems == {name: PROBLEMS[name] for name in names if name in PROBLEMS}


def test_files_that_cannot_be_used_are_named(tmp_path, caplog):
    """One line a case, though MONAI wraps errors twice and lists the tracebacks of all readers."""
    for seed, name in enumerate(("whole", "cut", "garbage")):
        array = np.random.default_rng(seed).random((9, 9, 9))
        for kind in ("flair", "seg"):
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}_{kind}.nii.gz")
    _truncate(tmp_path / "cut_flair.nii.gz")
    (tmp_path / "garbage_seg.nii.gz").write_bytes(b"no image at all")
    listed = [
        {"case_id": name, "image": {"flair": f"{name}_flair.nii.gz"}, "label": f"{name}_seg.nii.gz"}
        for name in ("cut", "whole", "absent", "garbage")
    ]
    (tmp_path / "datalist.json").write_text(json.dumps({"test": listed}))
    items = load_datalist(tmp_path / "datalist.json", tmp_path, "test", "flair", keep_invalid=True)
    load = LoadImaged(["image", "label"], reader=SimpleITKReader(), ensure_channel_first=True)
    cases = ValidCases(items, Compose([Compose([load])]))
    assert [item["case_id"] for item in cases] == ["whole"]
    assert list(cases.problems) == ["cut", "absent", "garbage"]
    files = ["cut_flair.nii.gz cannot be read: ", "absent_flair.nii.gz does not exist; ", "garbage_seg.nii.gz"]
    for name, file in zip(cases.problems, files, strict=True):
        assert str(tmp_path / file) in cases.problems[name]
        assert "\n" not in cases.problems[name]
        assert "applying transform" not in cases.problems[name]
        assert f"{name} cannot be used: {cases.problems[name]}" in caplog.text


# --------------------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_follows_the_files(tmp_path, monkeypatch):
    (tmp_path / "a.nii").write_text("scan")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_text("slice")
    item = {"case_id": "P1", "image": [str(tmp_path / "a.nii"), str(tmp_path / "series")]}
    before = fingerprint(item)
    assert fingerprint(dict(item)) == before
    monkeypatch.chdir(tmp_path)
    (tmp_path / "P1").mkdir()  # named as the case, and none of its files
    assert fingerprint(item) == before
    seen = {before}
    for path in (tmp_path / "a.nii", tmp_path / "series" / "1.dcm", tmp_path / "series" / "2.dcm"):
        path.write_text("another")
        seen.add(fingerprint(item))
    seen.add(fingerprint({**item, "case_id": "P2"}))
    assert len(seen) == 5


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_fingerprint_of_a_header_changes_with_its_voxels(tmp_path, suffix):
    path = tmp_path / f"flair.{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.int16)), str(path))
    before = fingerprint({"image": [str(path)]})
    assert fingerprint({"image": [str(path)]}) == before
    (voxels,) = tmp_path.glob("*raw")
    voxels.write_bytes(bytes([1]) * voxels.stat().st_size)
    os.utime(voxels, ns=(0, 0))
    assert fingerprint({"image": [str(path)]}) != before
