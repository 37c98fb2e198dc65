"""Folders of images: which are for training, validation and test, and what is known of them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from image_drawings import draw_mvtec, draw_oct, draw_videos

from ssmctb_monai.data import find_images, frame_files, have_masks, load_datalist, prepare_image_datalist
from ssmctb_monai.files import read_json, write_json

SECTIONS = ("training", "validation", "test")
RGB = ("red", "green", "blue")


@pytest.fixture
def mvtec(tmp_path):
    return draw_mvtec(tmp_path / "bottle")


@pytest.fixture
def oct_folder(tmp_path):
    return draw_oct(tmp_path / "OCT2017")


def sections_of(root, folder, **arguments):
    file = prepare_image_datalist(root, folder / "datalist.json", **arguments)
    return {name: load_datalist(file, root, name, RGB) for name in SECTIONS}


@pytest.mark.parametrize("layout", ["mvtec", "auto"])
def test_mvtec(mvtec, tmp_path, layout):
    sections = sections_of(mvtec, tmp_path, layout=layout, validation=2)
    assert [len(sections[name]) for name in SECTIONS] == [4, 2, 4]
    train = sorted(item["case_id"] for name in SECTIONS[:2] for item in sections[name])
    assert train == [f"train_good_{index:03}" for index in range(6)]
    assert not any(item["anomalous"] for name in SECTIONS[:2] for item in sections[name])
    (spot,) = [item for item in sections["test"] if item["case_id"] == "test_spot_001"]
    assert spot["image"] == [str(mvtec / "test/spot/001.png")]
    assert spot["channels"] == [0, 1, 2]
    assert spot["label"] == str(mvtec / "ground_truth/spot/001_mask.png")
    assert [item["anomalous"] for item in sections["test"]] == [False, False, True, True]
    assert have_masks(sections["test"])


def test_oct(oct_folder, tmp_path):
    sections = sections_of(oct_folder, tmp_path, validation=1)
    assert [len(sections[name]) for name in SECTIONS] == [4, 2, 8]
    assert {item["patient_id"] for item in sections["test"]} == {"50", "51", "52", "53"}
    assert len({item["patient_id"] for item in sections["validation"]}) == 1
    assert sum(item["anomalous"] for item in sections["test"]) == 6
    assert not have_masks(sections["test"])
    file = tmp_path / "datalist.json"
    (item, *_) = load_datalist(file, oct_folder, "test", ["grey"])
    assert item["channels"] == [0]


def test_a_patient_of_the_test_part_is_not_trained_on(oct_folder, tmp_path, caplog):
    before = sections_of(oct_folder, tmp_path / "before", validation=1)
    (training, *_) = before["training"]
    shutil.copy(before["test"][-1]["image"][0], oct_folder / f"test/CNV/CNV-{training['patient_id']}-9.jpeg")
    after = sections_of(oct_folder, tmp_path / "after", validation=1)
    trained = {item["patient_id"] for name in SECTIONS[:2] for item in after[name]}
    assert training["patient_id"] not in trained
    assert len(after["test"]) == len(before["test"]) + 1
    assert "training images are left out, whose patient is in test, too" in caplog.text


def test_copies_are_of_one_patient(mvtec, oct_folder, tmp_path):
    shutil.copy(mvtec / "train/good/000.png", mvtec / "train/good/099.png")
    shutil.copy(mvtec / "train/good/001.png", mvtec / "test/good/098.png")
    sections = sections_of(mvtec, tmp_path, validation=2)
    owners = {item["case_id"]: item["patient_id"] for name in SECTIONS for item in sections[name]}
    assert owners["train_good_099"] == owners["train_good_000"]
    assert "train_good_001" not in owners
    assert "test_good_098" in owners


def test_a_datalist_stays_as_it_is(mvtec, tmp_path):
    file = prepare_image_datalist(mvtec, tmp_path / "datalist.json", validation=0.5)
    before = read_json(file)
    assert read_json(prepare_image_datalist(mvtec, file, validation=0, seed=3)) == before


def test_other_seed_other_validation(mvtec, tmp_path):
    found = set()
    for seed in range(5):
        file = prepare_image_datalist(mvtec, tmp_path / f"{seed}.json", validation=2, seed=seed)
        found.add(tuple(item["case_id"] for item in read_json(file)["validation"]))
    assert len(found) > 1


def test_refusals(mvtec, oct_folder, tmp_path):
    with pytest.raises(ValueError, match=r"neither train/good.*nor train/NORMAL.*name one class, such as .*bottle"):
        prepare_image_datalist(tmp_path, tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"There are no images in .*train.good"):
        prepare_image_datalist(oct_folder, tmp_path / "a.json", layout="mvtec")
    with pytest.raises(ValueError, match="layout must be one of auto, mvtec, oct, frames, got 'coco'"):
        prepare_image_datalist(mvtec, tmp_path / "a.json", layout="coco")
    (mvtec / "ground_truth/spot/001_mask.png").unlink()
    with pytest.raises(ValueError, match=r"1 anomalous images have no mask .*spot.001.png"):
        prepare_image_datalist(mvtec, tmp_path / "a.json")
    file = prepare_image_datalist(mvtec, tmp_path / "a.json", skip_invalid=True)
    assert [item["case_id"] for item in read_json(file)["test"]][2:] == ["test_spot_000"]


def test_images_for_inference(mvtec):
    shutil.copytree(mvtec / "test", mvtec / "out/test")
    names = [item["case_id"] for item in find_images(mvtec / "test")]
    assert names == ["good_000", "good_001", "spot_000", "spot_001"]
    assert len(find_images(mvtec, exclude=mvtec / "out")) == 10  # no masks, no results
    (item,) = find_images(mvtec / "test/spot/000.png")
    assert item == {"case_id": "000", "patient_id": "000", "image": [str(mvtec / "test/spot/000.png")]}
    with pytest.raises(ValueError, match="There is no image in"):
        find_images(mvtec / "ground_truth/none")


# -------------------------------------------------------------------------------------------------------------- videos


@pytest.mark.parametrize("labels", ["pixels", "frames", "together"])
def test_videos(tmp_path, labels):
    root = draw_videos(tmp_path / "avenue", labels=labels)
    sections = sections_of(root, tmp_path, validation=1)
    assert [len(sections[name]) for name in SECTIONS] == [2, 1, 2]
    assert {item["anomalous"] for name in SECTIONS[:2] for item in sections[name]} == {False}
    first, second = sections["test"]
    assert (first["case_id"], second["patient_id"]) == ("testing_frames_01_0000", "testing_frames_01_0001")
    assert first["image"] == [str(root / "testing/frames/01_0000")]
    assert first["anomalous"] == second["anomalous"] == [[2, 6]]
    assert have_masks(sections["test"]) == (labels == "pixels")
    if labels == "pixels":
        assert first["label"] == str(root / "testing/test_pixel_mask/01_0000.npy")


def test_runs_of_frames(tmp_path):
    """Of one file for all videos, in the order of their names."""
    root = draw_videos(tmp_path / "avenue", labels="together")
    np.save(root / "frame_labels_drawn.npy", np.array([[1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]]))
    runs = [item["anomalous"] for item in sections_of(root, tmp_path, validation=1)["test"]]
    assert runs == [[[0, 2], [4, 5]], []]
    for wrong in ([[3, 3]], [[0, 1.5]], [3], "yes"):
        content = read_json(tmp_path / "datalist.json")
        content["test"][0]["anomalous"] = wrong
        write_json(content, tmp_path / "wrong.json")
        with pytest.raises(ValueError, match="neither true nor false, nor runs of frames such as"):
            load_datalist(tmp_path / "wrong.json", root, "test", RGB)


def test_labels_of_videos_that_lack_or_do_not_fit(tmp_path):
    root = draw_videos(tmp_path / "avenue", labels="none")
    with pytest.raises(ValueError, match=r"01_0000 needs labels of its frames: .*test_pixel_mask or .*01_0000.npy"):
        prepare_image_datalist(root, tmp_path / "a.json")
    np.save(root / "testing/frame_labels_drawn.npy", np.zeros(11))
    with pytest.raises(ValueError, match=r"frame_labels_drawn.npy has labels of 11 frames, but there are 12"):
        prepare_image_datalist(root, tmp_path / "a.json")
    (root / "testing/test_frame_mask").mkdir()
    np.save(root / "testing/test_frame_mask/01_0000.npy", np.zeros(5))
    with pytest.raises(ValueError, match=r"01_0000.npy has labels of 5 frames, but there are 6"):
        prepare_image_datalist(root, tmp_path / "a.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"no array", np.array([None]), ["0", "1"], [0, np.nan], [np.inf, 0], [0, -1], [1j, 0], {"a": np.zeros(12)}],
)
def test_labels_of_videos_that_are_none(tmp_path, content):
    root = draw_videos(tmp_path / "avenue", labels="none")
    file = root / "testing/frame_labels_drawn.npy"
    with file.open("wb") as opened:
        if isinstance(content, bytes):
            opened.write(content)
        elif isinstance(content, dict):
            np.savez(opened, **content)
        else:
            np.save(opened, content)
    with pytest.raises(ValueError, match=r"frame_labels_drawn.npy holds no labels of frames, an array of numbers"):
        prepare_image_datalist(root, tmp_path / "a.json")


def test_two_images_of_one_name(mvtec, tmp_path):
    shutil.copy(mvtec / "train/good/000.png", mvtec / "train/good/000.bmp")
    for find in (lambda: prepare_image_datalist(mvtec, tmp_path / "a.json"), lambda: find_images(mvtec / "train")):
        with pytest.raises(ValueError, match=r"000.bmp and .*000.png would both have the name (train_)?good_000"):
            find()


def test_order_of_frames(tmp_path):
    for name in ("10.png", "9.png", "11.jpg", "notes.txt", ".12.png"):
        (tmp_path / name).touch()
    assert [file.name for file in frame_files(tmp_path)] == ["9.png", "10.png", "11.jpg"]


def test_videos_for_inference(tmp_path):
    root = draw_videos(tmp_path / "avenue")
    names = [item["case_id"] for item in find_images(root / "testing", videos=True)]
    assert names == ["frames_01_0000", "frames_01_0001"]
    (item,) = find_images(root / "testing/frames/01_0001", videos=True)
    assert (item["case_id"], item["image"]) == ("01_0001", [str(root / "testing/frames/01_0001")])
