import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import nibabel as nib
import numpy as np
import pytest

from ssmctb_monai.data import demo
from ssmctb_monai.data.demo import make_demo_dataset

pytest.importorskip("nilearn")

MODALITIES = ("flair", "t1", "t1ce", "t2")
SUBSETS = {"training": 6, "validation": 3, "test": 3}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("cache") / "demo")


@pytest.fixture(scope="module")
def datalist(dataset):
    return json.loads((dataset / "datalist.json").read_text())


@pytest.fixture(scope="module")
def cases(dataset, datalist):
    """Subset, images by modality and label of every case."""

    def load(path):
        return np.asarray(nib.load(dataset / path).dataobj)

    return [
        (subset, {m: load(path) for m, path in case["image"].items()}, load(case["label"]))
        for subset in SUBSETS
        for case in datalist[subset]
    ]


@pytest.fixture
def quick(monkeypatch):
    """Replace the generation by one that takes no time, and return the calls."""
    calls = []

    def write(folder, name, seed):
        calls.append(name)
        folder.mkdir()
        (folder / "datalist.json").write_text(json.dumps({"name": name}))

    monkeypatch.setattr(demo, "_write_dataset", write)
    return calls


def test_datalist(dataset, datalist):
    assert {subset: len(datalist[subset]) for subset in SUBSETS} == SUBSETS
    entries = [case for subset in SUBSETS for case in datalist[subset]]
    assert len({case["patient_id"] for case in entries}) == len(entries)
    for case in entries:
        case_id = case["case_id"]
        assert case["image"] == {m: f"{case_id}/{case_id}_{m}.nii.gz" for m in MODALITIES}
        assert case["label"] == f"{case_id}/{case_id}_seg.nii.gz"
    listed = {path for case in entries for path in (*case["image"].values(), case["label"])}
    assert listed == {str(path.relative_to(dataset)) for path in dataset.rglob("*.nii.gz")}
    assert "Fonov" in (dataset / "README.txt").read_text()


def test_files_lie_in_mni_space(dataset):
    for path in dataset.rglob("*.nii.gz"):
        image = nib.load(path)
        assert image.shape == (99, 117, 95)
        np.testing.assert_array_equal(image.affine[:3], [[2, 0, 0, -98], [0, 2, 0, -134], [0, 0, 2, -72]])
        assert image.get_data_dtype() == (np.uint8 if path.match("*_seg.nii.gz") else np.int16)


def test_intensities(cases):
    maxima = [image.max() for _, images, _ in cases for image in images.values()]
    assert 1000 <= min(maxima) < 1500
    assert 3500 < max(maxima) <= 4000
    for _, images, _ in cases:
        brain = images["flair"] > 0
        assert 0.8e6 < brain.sum() * 8 < 2.6e6  # mm³
        for image in images.values():
            np.testing.assert_array_equal(image > 0, brain)
            assert image.min() == 0


def test_lesions(cases):
    assert [label.any() for subset, _, label in cases if subset == "training"].count(True) == 3
    assert all(label.any() for subset, _, label in cases if subset != "training")
    assert set(np.unique([label for _, _, label in cases])) == {0, 1, 2, 4}
    volumes = [np.count_nonzero(label) * 8 / 1000 for _, _, label in cases if label.any()]
    assert 2 <= min(volumes) < 10
    assert 50 < max(volumes) <= 101
    for _, images, label in cases:
        assert (images["flair"][label > 0] > 0).all()


def test_healthy_tissues_have_the_contrast_of_each_modality(cases):
    csf, grey, white, ventricles = demo._load_template().maps
    regions = (ventricles > 0.5, grey > 0.9, (white > 0.95) & (csf == 0))  # the warps move them by a few mm only
    for _, images, label in cases:
        median = {m: [np.median(image[r & (label == 0)]) for r in regions] for m, image in images.items()}
        for modality in ("t1", "t1ce"):
            assert median[modality][0] < median[modality][1] < median[modality][2]
        assert median["t2"][0] > median["t2"][1] > median["t2"][2]
        assert median["flair"][0] < median["flair"][2] < median["flair"][1]


def test_lesions_have_the_contrast_of_each_modality(cases):
    white = demo._load_template().maps[2] > 0.95

    def relative_to_white_matter(modality, lesion):
        pairs = [(images[modality], label) for _, images, label in cases if (label == lesion).any()]
        return np.median([np.median(i[s == lesion]) / np.median(i[white & (s == 0)]) for i, s in pairs])

    necrotic, oedema, enhancing = 1, 2, 4
    assert relative_to_white_matter("flair", oedema) > 1.1
    assert relative_to_white_matter("t2", oedema) > 1.1
    assert relative_to_white_matter("t1", oedema) < 0.95
    assert relative_to_white_matter("t1ce", enhancing) > 1.3
    assert relative_to_white_matter("t1", necrotic) < 0.7


def test_flair_threshold_is_neither_useless_nor_perfect(cases):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels, slice_scores, slice_labels = [], [], [], []
    for subset, images, label in cases:
        if subset == "training":
            continue
        flair, brain = images["flair"], images["flair"] > 0
        low, middle, high = np.percentile(flair[brain], (5, 50, 95))
        score = (flair - middle) / (high - low)
        scores.append(score[brain])
        labels.append(label[brain] > 0)
        slices = brain.sum((0, 1)) > 100
        slice_scores.append(score.max((0, 1))[slices])
        slice_labels.append(label.any((0, 1))[slices])
    assert 0.4 < metrics.average_precision_score(np.concatenate(labels), np.concatenate(scores)) < 0.75
    assert 0.75 < metrics.roc_auc_score(np.concatenate(slice_labels), np.concatenate(slice_scores)) < 0.92


def test_same_seed_makes_the_same_voxels(cases):
    lesion = next(demo._plan_lesions(np.random.default_rng(0)))
    images, label = demo._make_patient(demo._load_template(), np.random.default_rng([0, 0]), lesion)
    np.testing.assert_array_equal(label, cases[0][2])
    for modality, image in images.items():
        np.testing.assert_array_equal(image, cases[0][1][modality])


def test_another_seed_makes_other_voxels(cases):
    images, _ = demo._make_patient(demo._load_template(), np.random.default_rng([1, 0]), None)
    assert not np.array_equal(images["t1"] > 0, cases[0][1]["t1"] > 0)


def test_second_call_makes_nothing(dataset, quick):
    assert make_demo_dataset(dataset) == dataset
    assert not quick


def test_default_folder_is_in_the_cache(tmp_path, monkeypatch, quick, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with caplog.at_level(logging.INFO):
        folder = make_demo_dataset()
    assert folder.parent == tmp_path / "xdg" / "ssmctb_monai"
    assert str(folder) in caplog.text
    assert make_demo_dataset(seed=1) != folder

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert make_demo_dataset() == tmp_path / ".cache" / "ssmctb_monai" / folder.name


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch, quick):
    def interrupted(folder, name, seed):
        folder.mkdir()
        (folder / "datalist.json").write_text(json.dumps({"name": name}))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_write_dataset", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_demo_dataset(tmp_path / "demo")
    assert not any(tmp_path.iterdir())
    make_demo_dataset(tmp_path / "demo")
    assert len(quick) == 1


def test_leftover_of_a_killed_run_is_not_taken_for_complete(tmp_path, quick):
    leftover = tmp_path / ".demo-abc" / "demo"
    leftover.mkdir(parents=True)
    assert make_demo_dataset(tmp_path / "demo") == tmp_path / "demo"
    assert len(quick) == 1
    assert leftover.exists()  # it may belong to a process that still runs


def test_two_simultaneous_runs_both_end_with_the_data(tmp_path, monkeypatch, quick):
    barrier, write = Barrier(2), demo._write_dataset

    def write_together(folder, name, seed):
        write(folder, name, seed)
        barrier.wait(timeout=10)

    monkeypatch.setattr(demo, "_write_dataset", write_together)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(make_demo_dataset, [tmp_path / "demo"] * 2))
    assert folders == [tmp_path / "demo"] * 2
    assert len(quick) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_empty_folder_is_filled(tmp_path, quick):
    assert (make_demo_dataset(tmp_path) / "datalist.json").is_file()


@pytest.mark.parametrize("name", ["notes.txt", "datalist.json"])
def test_other_content_is_never_touched(tmp_path, quick, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match="something other"):
        make_demo_dataset(tmp_path)
    assert not quick


def test_missing_nilearn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "ssmctb_monai\[demo\]"'):
        make_demo_dataset(tmp_path / "demo")
    assert not any(tmp_path.iterdir())
