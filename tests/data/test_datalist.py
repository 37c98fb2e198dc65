import gzip
import hashlib
import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from ssmctb_monai.data.brats import BratsCase, find_cases, shared_modalities
from ssmctb_monai.data.checks import InvalidCasesError
from ssmctb_monai.data.datalist import (
    join_owners,
    load_datalist,
    patient_folds,
    prepare_datalist,
    split_patients,
    write_datalist,
)


def make_cases(scans):
    """Cases without files, ``scans[i]`` of them for patient i."""
    return [
        BratsCase(f"P{patient}-{scan}", f"P{patient}", {}, None, None, {})
        for patient, count in enumerate(scans)
        for scan in range(count)
    ]


def patients(part):
    return {case.patient_id for case in part}


shares = st.floats(0, 0.45)
counts = st.integers(0, 4)


@given(
    scans=st.lists(st.integers(1, 3), min_size=12, max_size=40),
    validation=shares | counts,
    test=shares | counts,
    seed=st.integers(0, 100),
    order=st.randoms(use_true_random=False),
)
def test_split_keeps_patients_whole_takes_all_cases_and_ignores_order(scans, validation, test, seed, order):
    cases = make_cases(scans)
    parts = split_patients(cases, validation=validation, test=test, seed=seed)
    assert list(parts) == ["training", "validation", "test"]
    assert sorted(case.case_id for part in parts.values() for case in part) == sorted(case.case_id for case in cases)
    assert sum(len(patients(part)) for part in parts.values()) == len(scans)
    for name, size in {"validation": validation, "test": test}.items():
        if isinstance(size, int):
            assert len(patients(parts[name])) == size
        else:
            assert abs(len(patients(parts[name])) - size * len(scans)) <= 1
    order.shuffle(cases)
    assert split_patients(cases, validation=validation, test=test, seed=seed) == parts


def test_split_is_the_same_everywhere():
    parts = split_patients(make_cases([1] * 8), validation=2, test=2, seed=0)
    assert {name: [case.patient_id for case in part] for name, part in parts.items()} == {
        "training": ["P0", "P1", "P5", "P6"],
        "validation": ["P2", "P3"],
        "test": ["P4", "P7"],
    }


def test_split_of_the_paper():
    parts = split_patients(make_cases([1] * 400), training=125, validation=0, test=180)
    assert [len(part) for part in parts.values()] == [125, 0, 180]


def test_shares_that_sum_to_one_take_every_patient():
    for total in range(5, 60):
        parts = split_patients(make_cases([1] * total), training=0.7, validation=0.2, test=0.1)
        assert sum(map(len, parts.values())) == total


def test_seed_changes_the_split_and_training_size_does_not_change_the_test_part():
    cases = make_cases([1] * 50)
    first, other_seed = split_patients(cases), split_patients(cases, seed=1)
    assert first["test"] != other_seed["test"]
    assert split_patients(cases, training=3, validation=0)["test"] == first["test"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"training": 125, "validation": 0, "test": 180}, "not enough patients for training=125.*of 10 patients"),
        ({"validation": 6, "test": 0.6}, "not enough patients"),
        ({"validation": 5, "test": 5}, "training part would be empty"),
        ({"training": 0}, "training part would be empty"),
        ({"validation": 1.5}, "share"),
        ({"validation": -1}, "count"),
        ({"test": "0.2"}, "share"),
        ({"test": True}, "count"),
        ({"test": float("nan")}, "share"),
    ],
)
def test_impossible_split(sizes, message):
    with pytest.raises(ValueError, match=message):
        split_patients(make_cases([1] * 10), **sizes)


def test_split_of_no_cases():
    with pytest.raises(ValueError, match="would be empty"):
        split_patients([])


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


@pytest.fixture
def dataset_dir(tmp_path):
    """Ten patients, the first with two scans and a brain mask; flair, t1 and seg each."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for case_id in ["BraTS-GLI-00000-001", *(f"BraTS-GLI-{i:05d}-000" for i in range(10))]:
        for modality in ("t2f", "t1n"):
            save(root / case_id / f"{case_id}-{modality}.nii.gz", rng.normal(size=(3, 4, 5)))
        save(root / case_id / f"{case_id}-seg.nii.gz", np.zeros((3, 4, 5), np.uint8))
    save(root / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-brainmask.nii.gz", np.ones((3, 4, 5), np.uint8))
    return root


def load_all(datalist, dataset_dir, modalities=("flair",), **kwargs):
    return {
        section: load_datalist(datalist, dataset_dir, section, modalities, **kwargs)
        for section in ("training", "validation", "test")
    }


def test_prepare_and_load(tmp_path, dataset_dir):
    datalist = prepare_datalist(dataset_dir, tmp_path / "run" / "datalist.json", ["flair", "t1"], seed=3)
    assert datalist == tmp_path / "run" / "datalist.json"
    assert [path.name for path in datalist.parent.iterdir()] == ["datalist.json"]
    content = json.loads(datalist.read_text())
    assert list(content) == ["name", "description", "training", "validation", "test"]
    assert "seed 3" in content["description"]
    assert "flair, t1" in content["description"]
    listed = {case["case_id"]: case for section in ("training", "validation", "test") for case in content[section]}
    assert len(listed) == 11
    assert listed["BraTS-GLI-00000-000"] == {
        "case_id": "BraTS-GLI-00000-000",
        "patient_id": "BraTS-GLI-00000",
        "image": {
            "flair": "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz",
            "t1": "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz",
        },
        "label": "BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz",
        "brain": "BraTS-GLI-00000-000/BraTS-GLI-00000-000-brainmask.nii.gz",
    }

    items = {
        item["case_id"]: item for part in load_all(datalist, dataset_dir, ["t1n", "flair"]).values() for item in part
    }
    folder = dataset_dir / "BraTS-GLI-00000-000"
    assert items["BraTS-GLI-00000-000"] == {
        "case_id": "BraTS-GLI-00000-000",
        "patient_id": "BraTS-GLI-00000",
        "image": [str(folder / f"BraTS-GLI-00000-000-{name}.nii.gz") for name in ("t1n", "t2f")],
        "label": str(folder / "BraTS-GLI-00000-000-seg.nii.gz"),
        "brain": str(folder / "BraTS-GLI-00000-000-brainmask.nii.gz"),
    }
    assert "brain" not in items["BraTS-GLI-00001-000"]


def test_paths_are_absolute_for_a_relative_dataset_dir(tmp_path, dataset_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datalist = prepare_datalist("data", "datalist.json", "flair")
    (item, *_) = load_datalist(datalist, "data", "test", "flair")
    assert Path(item["label"]).is_absolute()
    assert Path(item["label"]).exists()


def test_datalist_is_made_once(tmp_path, dataset_dir):
    datalist = prepare_datalist(dataset_dir, tmp_path / "datalist.json", ["flair"])
    before = datalist.read_bytes()
    assert prepare_datalist(dataset_dir, datalist, ["t2"], seed=5, test=0) == datalist
    assert datalist.read_bytes() == before


def test_datalist_of_the_data_set_is_used_unless_there_is_an_own_one(tmp_path, dataset_dir):
    own = prepare_datalist(dataset_dir, tmp_path / "own.json", ["flair"])
    shipped = dataset_dir / "datalist.json"
    shipped.write_bytes(own.read_bytes())
    another = prepare_datalist(dataset_dir, tmp_path / "another.json", ["flair"])
    assert another == tmp_path / "another.json"  # a copy, which stays with the checkpoint
    assert json.loads(another.read_text()) == json.loads(shipped.read_text())
    shipped.write_text("{}")
    assert json.loads(prepare_datalist(dataset_dir, another, ["flair"]).read_text()) != {}
    shipped.write_text("[]")
    with pytest.raises(ValueError, match=r"datalist\.json must hold a JSON object"):
        prepare_datalist(dataset_dir, tmp_path / "third.json", ["flair"])
    assert prepare_datalist(dataset_dir, own, ["flair"]) == own


def test_invalid_cases_are_all_named_or_skipped(tmp_path, dataset_dir, caplog):
    (dataset_dir / "BraTS-GLI-00003-000" / "BraTS-GLI-00003-000-seg.nii.gz").unlink()
    (dataset_dir / "BraTS-GLI-00004-000" / "BraTS-GLI-00004-000-t2f.nii.gz").write_bytes(b"damaged")
    with pytest.raises(InvalidCasesError, match=r"(?s)00003-000:.*no segmentation.*00004-000:.*cannot be read"):
        prepare_datalist(dataset_dir, tmp_path / "datalist.json", ["flair"])
    assert not (tmp_path / "datalist.json").exists()

    with caplog.at_level(logging.WARNING):
        datalist = prepare_datalist(dataset_dir, tmp_path / "datalist.json", ["flair"], skip_invalid=True)
    assert all(name in caplog.text for name in ("00003-000", "no segmentation", "00004-000", "cannot be read"))
    listed = [item["case_id"] for part in load_all(datalist, dataset_dir).values() for item in part]
    assert len(listed) == 9
    assert not {"BraTS-GLI-00003-000", "BraTS-GLI-00004-000"} & set(listed)
    assert "2 invalid" in json.loads(datalist.read_text())["description"]


def test_listed_cases_that_lack_something_are_all_named_or_skipped(tmp_path, dataset_dir, caplog):
    datalist = prepare_datalist(dataset_dir, tmp_path / "datalist.json", ["flair"], validation=2, test=2)
    content = json.loads(datalist.read_text())
    first, second, *rest = content["training"]
    del first["image"]["t1"]
    second["label"] = "moved.nii.gz"
    datalist.write_text(json.dumps(content))
    with pytest.raises(InvalidCasesError) as raised:
        load_datalist(datalist, dataset_dir, "training", ["flair", "t1"])
    for text in (first["case_id"], "no t1 image", second["case_id"], "moved.nii.gz does not exist"):
        assert text in str(raised.value)
    with caplog.at_level(logging.WARNING):
        items = load_datalist(datalist, dataset_dir, "training", ["flair", "t1"], skip_invalid=True)
    assert [item["case_id"] for item in items] == [case["case_id"] for case in rest]
    assert "moved.nii.gz does not exist" in caplog.text


def test_listed_cases_that_lack_something_may_be_kept_with_their_problems(folder, caplog):
    entries = [
        entry("A"),
        entry("B", image={"t1": "b.nii.gz"}, label=None),
        entry("C", image={"flair": "c.nii.gz"}, label="moved.nii.gz", brain="gone.nii.gz"),
    ]
    for name in "bcd":
        (folder / f"{name}.nii.gz").touch()
    datalist = write(folder / "d.json", test=entries, other=[entry("D", image={"flair": "d.nii.gz"}, label=None)])
    for skip_invalid in (False, True):
        items = load_datalist(datalist, folder, "test", "flair", skip_invalid=skip_invalid, keep_invalid=True)
        assert [item["case_id"] for item in items] == ["A", "B", "C"]
        assert [item["patient_id"] for item in items] == ["A", "B", "C"]
        assert [item.get("problems") for item in items] == [
            None,
            ["no flair image in the datalist", "no segmentation in the datalist"],
            [f"{folder / name} does not exist" for name in ("moved.nii.gz", "gone.nii.gz")],
        ]
    assert items[0] == load_datalist(write(folder / "e.json", test=entries[:1]), folder, "test", "flair")[0]
    (item,) = load_datalist(datalist, folder, "other", "flair", keep_invalid=True)  # nothing usable, yet all reported
    assert item["problems"] == ["no segmentation in the datalist"]
    assert not caplog.records


def test_an_empty_section_has_nothing_to_keep(folder):
    with pytest.raises(ValueError, match=r"'test' of .*d\.json has no usable case"):
        load_datalist(write(folder / "d.json", test=[]), folder, "test", "flair", keep_invalid=True)


def write(path, **sections):
    path.write_text(json.dumps({"name": "x", **sections}))
    return path


def entry(case_id, **fields):
    return {"case_id": case_id, "image": {"flair": "image.nii.gz"}, "label": "label.nii.gz", **fields}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "image.nii.gz").touch()
    (tmp_path / "label.nii.gz").touch()
    return tmp_path


def test_four_dimensional_file(folder):
    image = dict.fromkeys(("flair", "t1"), "image.nii.gz")
    datalist = write(folder / "d.json", training=[entry("A", image=image, channels={"flair": 0, "t1": 1})])
    (item,) = load_datalist(datalist, folder, "training", ["t1", "flair"])
    assert item["image"] == [str(folder / "image.nii.gz")]
    assert item["channels"] == [1, 0]
    (item,) = load_datalist(datalist, folder, "training", ["flair", "t2", "t1"], optional=["t2", "t1"])
    assert (item["image"], item["channels"]) == ([str(folder / "image.nii.gz")], [0, -1, 1])


def test_optional_modalities(folder):
    images = {"t2": "label.nii.gz", "flair": "image.nii.gz"}
    datalist = write(folder / "d.json", test=[entry("A", image=images), entry("B", image={"t2": "t2.nii"})])
    names = ["flair", "t1", "t2"]
    first, second = load_datalist(datalist, folder, "test", names, optional=names[1:], keep_invalid=True)
    assert first["image"] == [str(folder / "image.nii.gz"), str(folder / "label.nii.gz")]
    assert first["channels"] == [0, -1, 1]
    assert second["problems"][0] == "no flair image in the datalist"
    assert shared_modalities([first, second], names) == ["flair", "t2"]


@pytest.mark.parametrize(
    "fields",
    [
        {"image": dict.fromkeys(("flair", "t1"), "image.nii.gz"), "channels": {"flair": 0}},
        {"image": {"flair": "image.nii.gz", "t1": "label.nii.gz"}, "channels": {"flair": 0, "t1": 1}},
    ],
)
def test_channels_without_one_file(folder, fields):
    datalist = write(folder / "d.json", training=[entry("A", **fields)])
    with pytest.raises(InvalidCasesError, match="channels need one 4D file"):
        load_datalist(datalist, folder, "training", ["flair", "t1"])


def test_patient_is_known_from_the_case_name_and_may_not_be_in_two_sections(folder):
    datalist = write(
        folder / "d.json", training=[entry("BraTS-GLI-00001-000")], test=[entry("BraTS-GLI-00001-001")], other=[]
    )
    with pytest.raises(ValueError, match="both in 'training' and in 'test': BraTS-GLI-00001"):
        load_datalist(datalist, folder, "training", "flair")


@pytest.mark.parametrize(
    ("content", "section", "message"),
    [
        ('{"training": [], "holdout": []}', "test", "no section 'test'; it has training, holdout"),
        ('{"name": "x"}', "test", "it has none"),
        ('{"test": []}', "test", "Section 'test' of .* has no usable case"),
        ("{", "test", "no JSON file"),
        ("[]", "test", "must hold a JSON object"),
        ('{"test": [{"image": {}}]}', "test", "lacks its case_id"),
        ('{"test": [{"case_id": "A", "image": "a.nii"}]}', "test", "lacks its case_id or its image by modality"),
        (json.dumps({"test": [entry("A"), entry("A")]}), "test", "more than once: A"),
    ],
)
def test_ill_datalist(folder, content, section, message):
    (folder / "d.json").write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_datalist(folder / "d.json", folder, section, "flair")
    assert "d.json" in str(raised.value)


def test_nothing_left_after_skipping_is_an_error(folder):
    datalist = write(folder / "d.json", test=[entry("A", label=None)])
    with pytest.raises(ValueError, match=r"'test' of .*d\.json has no usable case"):
        load_datalist(datalist, folder, "test", "flair", skip_invalid=True)


def test_missing_folder_and_file(folder):
    with pytest.raises(NotADirectoryError, match="absent"):
        prepare_datalist(folder / "absent", folder / "d.json", "flair")
    with pytest.raises(NotADirectoryError, match="absent"):
        load_datalist(write(folder / "d.json", test=[entry("A")]), folder / "absent", "test", "flair")
    with pytest.raises(FileNotFoundError, match=r"e\.json"):
        load_datalist(folder / "e.json", folder, "test", "flair")


# ---------------------------------------------------------------------------------------------------------------- folds


@given(
    scans=st.lists(st.integers(1, 3), min_size=5, max_size=20),
    count=st.integers(2, 5),
    seed=st.integers(0, 100),
    order=st.randoms(use_true_random=False),
)
def test_folds_keep_patients_whole_take_all_cases_and_ignore_order(scans, count, seed, order):
    cases = make_cases(scans)
    folds = patient_folds(cases, count, seed)
    assert len(folds) == count
    assert sorted(case.case_id for fold in folds for case in fold) == sorted(case.case_id for case in cases)
    sizes = [len(patients(fold)) for fold in folds]
    assert sum(sizes) == len(scans)
    assert max(sizes) - min(sizes) <= 1
    order.shuffle(cases)
    assert patient_folds(cases, count, seed) == folds


def test_folds_are_every_third_of_the_ranked_patients():
    ranked = sorted((f"P{index}" for index in range(8)), key=lambda name: hashlib.sha256(f"0/{name}".encode()).digest())
    folds = patient_folds(make_cases([2] * 8))
    assert [patients(fold) for fold in folds] == [set(ranked[0::3]), set(ranked[1::3]), set(ranked[2::3])]
    assert [case.case_id for case in folds[0]] == sorted(case.case_id for case in folds[0])
    assert patient_folds(make_cases([2] * 8), seed=1) != folds


@pytest.mark.parametrize("count", [0, 1, 4])
def test_number_of_folds(count):
    with pytest.raises(ValueError, match=f"from 2 to the number of patients, 3; got {count}"):
        patient_folds(make_cases([1, 2, 1]), count)


def test_a_written_datalist_is_loaded(tmp_path):
    for name in ("P1_flair.nii.gz", "P1_seg.nii.gz", "P2_flair.nii.gz", "P2_seg.nii.gz"):
        (tmp_path / name).touch()
    first, second = find_cases(tmp_path)
    file = tmp_path / "split" / "a.json"
    write_datalist({"training": [second], "validation": [], "test": [first]}, tmp_path, file, "!")
    content = json.loads(file.read_text())
    assert (content["name"], content["description"], content["validation"]) == (tmp_path.name, "!", [])
    (item,) = load_datalist(file, tmp_path, "test", "flair")
    assert item["case_id"] == "P1"
    assert item["label"] == str(tmp_path / "P1_seg.nii.gz")


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"case_id": value}
            for value in ("M" * 249, "../../evil", "/evil", "", " ", ".hidden", "a/b", "a\\b", "a\nb", 7, None)
        ),
        *({"patient_id": value} for value in (7, None, "", ["P"], 7.5, True)),
        *(
            {"image": value}
            for value in ({"flair": 7}, {"flair": None}, {"flair": ""}, {"flair": ["image.nii.gz"]}, [])
        ),
        *({"label": value} for value in (7, [], "", True)),
        *({"channels": value} for value in ({"flair": "0"}, {"flair": -1}, {"flair": True}, [0])),
    ],
)
def test_values_of_a_datalist_are_checked_where_they_are_read(folder, change):
    datalist = write(folder / "d.json", test=[{**entry("A"), **change}])
    with pytest.raises(ValueError, match=r"d\.json: "):
        load_datalist(datalist, folder, "test", "flair", keep_invalid=True)


def test_a_path_that_no_file_can_have_is_one_cases_problem(folder):
    entries = [entry("A"), entry("B", image={"flair": "x" * 5000}), entry("C", image={"flair": "loop.nii"})]
    (folder / "loop.nii").symlink_to("loop.nii")
    items = load_datalist(write(folder / "d.json", test=entries), folder, "test", "flair", keep_invalid=True)
    assert ["problems" in item for item in items] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"test": [], "test": []}', "it has 'test' more than once"),
        ('{"test": [{"case_id": "A", "case_id": "B"}]}', "it has 'case_id' more than once"),
        ("[" * 100_000, "damaged, or no JSON file"),
    ],
)
def test_datalist_that_says_something_twice_or_nothing_is_refused(folder, text, message):
    (folder / "d.json").write_text(text)
    with pytest.raises(ValueError, match=rf"d\.json is damaged.*{message}|d\.json is {message}"):
        load_datalist(folder / "d.json", folder, "test", "flair")


def test_datalist_of_an_editor_that_marks_its_encoding(folder):
    file = write(folder / "d.json", test=[entry("A")])
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert len(load_datalist(file, folder, "test", "flair")) == 1


def test_copies_of_an_image_stay_together(tmp_path, dataset_dir, caplog):
    """Patients 1 and 2 share one image, 2 and 3 another one, by copies and a link: they are one patient."""
    files = [
        [dataset_dir / f"{name}/{name}-{kind}.nii.gz" for kind in ("t2f", "t1n")]
        for name in (f"BraTS-GLI-{patient:05d}-000" for patient in range(10))
    ]
    files[2][0].write_bytes(gzip.compress(gzip.decompress(files[1][0].read_bytes()), compresslevel=1))
    files[3][1].unlink()
    files[3][1].symlink_to(files[2][1])
    together = {f"BraTS-GLI-{patient:05d}-000" for patient in (1, 2, 3)}
    for seed in range(4):
        caplog.clear()
        datalist = prepare_datalist(dataset_dir, tmp_path / f"{seed}.json", ["flair"], seed=seed)
        assert "t2f.nii.gz is an image of BraTS-GLI-00002-000, too: they count as one patient" in caplog.text
        assert "t1n.nii.gz is an image of BraTS-GLI-00003-000, too: they count as one patient" in caplog.text
        parts = [{item["case_id"] for item in part} for part in load_all(datalist, dataset_dir).values()]
        assert sum(map(len, parts)) == 11
        assert [part & together for part in parts if part & together] == [together]


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_headers_are_of_one_patient_only_where_their_voxels_are(tmp_path, suffix):
    """Volumes on one grid whose voxels are in files of their own have the same headers."""
    for index, name in enumerate(("P1", "P2", "P3", "P4")):
        path = tmp_path / name / f"flair.{suffix}"
        path.parent.mkdir()
        image = SimpleITK.GetImageFromArray(np.full((4, 5, 6), 7 * index, np.int16))
        SimpleITK.WriteImage(image, str(path))
    cases = join_owners(find_cases(tmp_path))
    assert [case.patient_id for case in cases] == ["P1", "P2", "P3", "P4"]
    SimpleITK.WriteImage(
        SimpleITK.ReadImage(str(tmp_path / f"P2/flair.{suffix}")), str(tmp_path / f"P4/flair.{suffix}")
    )
    assert [case.patient_id for case in join_owners(find_cases(tmp_path))] == ["P1", "P2", "P3", "P2"]


def test_an_image_of_two_patients_is_refused(folder):
    (folder / "link.nii.gz").symlink_to(folder / "image.nii.gz")
    for image in ("image.nii.gz", "./image.nii.gz"):
        datalist = write(folder / "d.json", training=[entry("A")], test=[entry("B", image={"flair": image})])
        with pytest.raises(ValueError, match=r"d\.json: .*image\.nii\.gz is an image of A and of B, another patient"):
            load_datalist(datalist, folder, "test", "flair")
    (folder / "image.nii.gz").write_bytes(gzip.compress(b"voxels" * 99, mtime=1))
    (folder / "copy.nii.gz").write_bytes(gzip.compress(b"voxels" * 99, compresslevel=1, mtime=2))
    datalist = write(folder / "d.json", training=[entry("A")], test=[entry("B", image={"flair": "copy.nii.gz"})])
    with pytest.raises(ValueError, match=r"d\.json: .*image\.nii\.gz is an image of A and of B, another patient"):
        load_datalist(datalist, folder, "test", "flair")
    visits = [entry("A", patient_id="P"), entry("B", patient_id="P")]
    assert len(load_datalist(write(folder / "d.json", test=visits), folder, "test", "flair")) == 2
