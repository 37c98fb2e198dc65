"""Heatmaps as loaded: where everything lies for any affine, what counts as brain, names, and what is refused."""

from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from heatmap_cases import (
    CENTRE,
    LESION,
    OBLIQUE,
    SHAPE,
    SPACING,
    TURNS,
    affine_of,
    brain_at,
    image_at,
    label_at,
    make_item,
    places,
    score_at,
)
from monai.data import MetaTensor
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from ssmctb_monai.metrics import AnomalyEvaluation, EvaluationSettings
from ssmctb_monai.reports.report import case_rows
from ssmctb_monai.visualize import load_heatmap
from ssmctb_monai.visualize.heatmap import case_name, map_file
from ssmctb_monai.visualize.viewer import ViewerScan

ALL_TURNS = [pytest.param(turn, id=name) for name, turn in (TURNS | OBLIQUE).items()]
SOME_TURNS = [pytest.param((TURNS | OBLIQUE)[name], id=name) for name in ("LPS", "IRP", "rotated")]


def save(path, array, affine=None, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine, **header), path)
    return path


def simple(**changes):
    """Five slices of 5 x 6 voxels of brain, value 1 to 5 from the feet up, within a background of 0."""
    image = np.zeros((7, 8, 9), dtype=np.float32)
    image[1:6, 1:7, 2:7] = np.arange(1, 6)
    return {"image": image, "anomaly_map": image / 10} | changes


def with_value(item, value, voxel):
    scores = item["anomaly_map"].copy()
    scores[voxel] = value
    return item | {"anomaly_map": scores}


# ---------------------------------------------------------------------------------------------------- where things are


def test_positions_by_hand():
    image = np.zeros((5, 7, 9))
    image[1:4, 1:6, 1:8] = 100
    scores = np.zeros(image.shape)
    scores[1, 2, 3] = 0.7  # at (-10 + 2, -20 + 6, -30 + 12)
    affine = np.array([[2, 0, 0, -10], [0, 3, 0, -20], [0, 0, 4, -30], [0, 0, 0, 1]])
    heatmap = load_heatmap({"image": image, "anomaly_map": scores, "affine": affine})
    assert heatmap.brain.shape == (5, 7, 9)
    assert heatmap.peak == (3, 4, 5)
    assert heatmap.scan_voxel((3, 4, 5)) == (1, 2, 3)
    assert heatmap.scan_voxel([0, 0, 0]) == (4, 6, 8)
    assert all(type(index) is int for index in (*heatmap.peak, *heatmap.scan_voxel(heatmap.peak)))
    assert heatmap.spacing == (2.0, 3.0, 4.0)
    expected = [[-2, 0, 0, -2], [0, -3, 0, -2], [0, 0, -4, 2], [0, 0, 0, 1]]
    np.testing.assert_array_equal(heatmap.affine, expected)
    np.testing.assert_array_equal(apply_affine(heatmap.affine, heatmap.peak), [-8, -14, -18])


def test_axes_change_places_by_hand():
    """The first axis of the array runs up, the second to the right, the third to the back."""
    image = np.zeros((6, 7, 8))
    image[1:5, 1:6, 1:7] = 1
    scores = image / 10
    scores[4, 2, 6] = 1
    affine = np.array([[0, 2, 0, 0], [0, 0, -3, 0], [5, 0, 0, 0], [0, 0, 0, 1]])
    heatmap = load_heatmap({"image": image, "anomaly_map": scores, "affine": affine})
    assert heatmap.brain.shape == (7, 8, 6)
    assert heatmap.spacing == (2.0, 3.0, 5.0)
    assert heatmap.peak == (4, 6, 1)  # third from the left; as far back as in the scan; one below the top
    assert heatmap.scan_voxel((4, 6, 1)) == (4, 2, 6)
    np.testing.assert_array_equal(apply_affine(heatmap.affine, heatmap.peak), [4, -18, 20])


@pytest.mark.parametrize("turn", ALL_TURNS)
def test_every_voxel_keeps_its_place_in_the_patient(turn):
    item = make_item(turn)
    heatmap = load_heatmap(item)
    assert nib.aff2axcodes(heatmap.affine) == ("L", "P", "I")
    assert (np.diag(heatmap.affine)[:3] < 0).all()
    assert sorted(heatmap.spacing) == pytest.approx(sorted(voxel_sizes(item["affine"])))
    place = apply_affine(heatmap.affine, np.stack(np.indices(heatmap.brain.shape), axis=-1)) - CENTRE
    brain = brain_at(place)
    assert brain.sum() > 100
    np.testing.assert_array_equal(heatmap.brain, brain | (label_at(place) > 0))
    np.testing.assert_allclose(heatmap.images["image"], image_at(place), rtol=1e-5)
    np.testing.assert_allclose(heatmap.anomaly_map[heatmap.brain], score_at(place)[heatmap.brain], rtol=1e-4)
    np.testing.assert_array_equal(heatmap.label, label_at(place) > 0)
    assert heatmap.label.dtype == heatmap.brain.dtype == bool

    nearest = np.where(heatmap.brain, ((place - LESION) ** 2).sum(axis=-1), np.inf)
    assert heatmap.peak == np.unravel_index(nearest.argmin(), nearest.shape)
    for voxel in np.argwhere(heatmap.brain)[::29]:
        own = heatmap.scan_voxel(voxel)
        assert item["image"][own] == heatmap.images["image"][tuple(voxel)]
        assert item["anomaly_map"][own] == heatmap.anomaly_map[tuple(voxel)]
        np.testing.assert_allclose(apply_affine(heatmap.affine, voxel), apply_affine(item["affine"], own), atol=1e-9)


@pytest.mark.parametrize("name", ["SRA", "PIL"])
def test_spacing_follows_the_axes(name):
    own = dict(zip(name.translate(str.maketrans("RAS", "LPI")), SPACING, strict=True))
    heatmap = load_heatmap(make_item(TURNS[name]))
    assert heatmap.spacing == pytest.approx([own[letter] for letter in "LPI"])


@pytest.mark.parametrize("turn", SOME_TURNS)
def test_slices_are_those_of_an_evaluation(turn):
    item = make_item(turn)
    evaluation = AnomalyEvaluation()
    brain = (item["image"] != 0).astype(np.uint8)
    evaluation.add("P1", {"model": item["anomaly_map"]}, item["label"], brain, affine=item["affine"])
    expected = evaluation.statistics["model"][0].slices
    found = load_heatmap(item).slices
    assert len(expected["slice"]) >= 3
    for column in ("slice", "score", "lesion_voxels"):
        np.testing.assert_array_equal(found[column], expected[column], err_msg=column)


@pytest.mark.parametrize("turn", SOME_TURNS[1:])
@pytest.mark.parametrize(
    "settings",
    [
        EvaluationSettings(slice_score="max", min_lesion_size=1),
        EvaluationSettings(slice_score="filtered_max", slices="all", min_lesion_size=5),
        EvaluationSettings(top_k=5, min_lesion_size=20),
        EvaluationSettings(top_k=60, slices="all", min_lesion_size=3),
    ],
    ids=["max", "filtered", "small", "all"],
)
def test_slices_and_candidates_follow_the_settings(turn, settings):
    """Scores with many maxima, so that there are components of many sizes."""
    item = make_item(turn)
    place = places(item["affine"])
    item["anomaly_map"] = (np.sin(place @ (1.1, 0.2, 0.7)) * np.cos(place @ (0.3, 0.9, -0.8))).astype(np.float32)
    evaluation = AnomalyEvaluation({"model": 0.25}, settings)
    brain = (item["image"] != 0).astype(np.uint8)
    evaluation.add("P1", {"model": item["anomaly_map"]}, item["label"], brain, affine=item["affine"])
    (case,) = evaluation.statistics["model"]
    heatmap = load_heatmap(item, settings)
    assert heatmap.settings == settings
    for column in ("slice", "lesion_voxels"):
        np.testing.assert_array_equal(heatmap.slices[column], case.slices[column], err_msg=column)
    np.testing.assert_allclose(heatmap.slices["score"], case.slices["score"], rtol=1e-5, atol=1e-7)
    default = load_heatmap(item).slices["score"]
    assert len(default) != len(case.slices["score"]) or not np.allclose(default, case.slices["score"])

    lesions = case.flagged.findings.lesions
    found = ViewerScan(heatmap).candidates(0.25)
    (row,) = case_rows(evaluation)
    right = count_right(item, brain, settings.min_lesion_size)
    assert found["total"] == row["false_positives"] + right == len(lesions.false_alarms) + right > 0
    listed = [entry["score"] for entry in found["candidates"]]
    assert not {float(score) for score in lesions.false_alarms} - set(listed)


def count_right(item, brain, min_size):
    """Components that are a lesion by a tenth at least, by SciPy."""
    inside = (brain > 0) | (item["label"] > 0)
    labels, count = ndimage.label(inside & (item["anomaly_map"] >= np.float32(0.25)), np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    large = [number for number in range(1, count + 1) if sizes[number] >= min_size]
    return sum(item["label"][labels == number].mean() >= 0.1 for number in large)


def test_settings_are_those_of_an_evaluation_by_default():
    assert load_heatmap(simple()).settings == EvaluationSettings()
    assert load_heatmap(simple(), None).settings == EvaluationSettings()


def test_slices_by_hand():
    """Scores of slices are means of their 20 highest voxels; 30 are at 0.1 to 0.5 from the feet up."""
    item = simple(label=np.zeros((7, 8, 9), dtype=int))
    item["label"][2:4, 2:5, 5] = 1
    item["anomaly_map"][1, 1:3, 6] = 0.9
    upright = load_heatmap(item).slices
    assert upright["slice"].tolist() == [2, 3, 4, 5, 6]
    assert upright["score"] == pytest.approx([0.1, 0.2, 0.3, 0.4, (18 * 0.5 + 2 * 0.9) / 20])
    assert upright["lesion_voxels"].tolist() == [0, 0, 0, 6, 0]
    turned = load_heatmap(item | {"affine": np.diag([1, 1, -1, 1])}).slices
    assert turned["slice"].tolist() == [2, 3, 4, 5, 6]
    np.testing.assert_array_equal(turned["score"], upright["score"][::-1])
    assert turned["lesion_voxels"].tolist() == [0, 6, 0, 0, 0]
    assert load_heatmap(simple()).slices["lesion_voxels"].tolist() == [0] * 5


# ------------------------------------------------------------------------------------------------------- what is brain


def test_labelled_voxels_outside_the_brain_mask_count():
    brain, label = np.zeros((2, 7, 8, 9))
    brain[2:5, 2:5, 3:6] = 1
    label[6, 7, 8] = 2
    item = with_value(simple(brain=brain, label=label), 0.8, (6, 7, 8))
    heatmap = load_heatmap(item)
    assert heatmap.brain.sum() == 28
    assert heatmap.label.sum() == 1
    assert heatmap.scan_voxel(heatmap.peak) == (6, 7, 8)
    assert load_heatmap(item | {"label": None}).brain.sum() == 27
    assert load_heatmap(item | {"label": None}).label is None
    assert load_heatmap(simple()).brain.sum() == 150


def test_outside_the_brain_scores_are_the_lowest_inside():
    item = with_value(with_value(with_value(simple(), np.nan, (0, 0, 0)), np.inf, (6, 7, 8)), 99, (0, 7, 0))
    heatmap = load_heatmap(item)
    assert heatmap.anomaly_map.dtype == np.float32
    assert heatmap.anomaly_map[~heatmap.brain] == pytest.approx(0.1)
    assert heatmap.anomaly_map.max() == pytest.approx(0.5)
    assert np.isfinite(item["image"]).all()


def test_peak_of_negative_scores_is_in_the_brain():
    item = simple()
    item["anomaly_map"] = item["anomaly_map"] - 7
    item["anomaly_map"][0, 0, 0] = 3
    item["anomaly_map"][2, 3, 4] = -1
    heatmap = load_heatmap(item)
    assert heatmap.scan_voxel(heatmap.peak) == (2, 3, 4)
    assert heatmap.anomaly_map.max() == -1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_in_the_brain_are_finite(tmp_path, value):
    item = simple()
    scores = with_value(item, value, (3, 3, 3))["anomaly_map"]
    file = save(tmp_path / "maps" / "P7.nii.gz", scores)
    with pytest.raises(ValueError, match=r"P7\.nii\.gz holds NaN or infinite scores in the brain"):
        load_heatmap(item | {"anomaly_map": file})


def test_labelled_voxels_outside_the_brain_need_a_score():
    label = np.zeros((7, 8, 9))
    label[0, 0, 0] = 1
    item = with_value(simple(), np.nan, (0, 0, 0))
    assert load_heatmap(item).brain.sum() == 150
    with pytest.raises(ValueError, match="infinite scores in the brain"):
        load_heatmap(item | {"label": label})


def test_constant_map():
    heatmap = load_heatmap(simple(anomaly_map=np.full((7, 8, 9), 0.25)))
    assert heatmap.brain[heatmap.peak]
    assert (heatmap.anomaly_map == 0.25).all()
    assert heatmap.slices["score"].tolist() == [0.25] * 5


# --------------------------------------------------------------------------------------------------- files and arrays


@pytest.fixture
def files(tmp_path):
    """A case on disk, oblique, and its item."""
    affine = affine_of(OBLIQUE["rotated"])
    place = places(affine)
    arrays = {"flair": image_at(place), "t1": 2 * image_at(place), "seg": label_at(place)}
    paths = {kind: save(tmp_path / "P1" / f"P1_{kind}.nii.gz", array, affine) for kind, array in arrays.items()}
    scores = save(tmp_path / "maps" / "P1.nii.gz", score_at(place), affine)
    return {"image": [paths["flair"], str(paths["t1"])], "anomaly_map": scores, "label": paths["seg"]}


def check(heatmap):
    """Tells by the lesion that images, map and label are where they belong."""
    place = apply_affine(heatmap.affine, heatmap.peak) - CENTRE
    assert np.linalg.norm(place - LESION) < np.linalg.norm(SPACING) / 2
    assert heatmap.anomaly_map[heatmap.peak] == pytest.approx(score_at(place), rel=1e-4)
    first = next(iter(heatmap.images.values()))
    assert first[heatmap.peak] == pytest.approx(image_at(place), rel=1e-4)
    assert first.dtype == np.float32


def test_nifti_files_of_two_modalities(files):
    heatmap = load_heatmap(files)
    check(heatmap)
    assert heatmap.label[heatmap.peak]
    assert list(heatmap.images) == ["flair", "t1"]
    np.testing.assert_array_equal(heatmap.images["t1"], 2 * heatmap.images["flair"])
    assert (heatmap.case_id, heatmap.map_file, heatmap.threshold) == ("P1", files["anomaly_map"], None)
    assert heatmap.reconstructions == {}


def test_metaimage_files(tmp_path):
    affine = affine_of(OBLIQUE["rotated"])
    place = places(affine)
    for name, array in {"BRATS_HG0001_T1C": image_at(place), "case.1": score_at(place)}.items():
        image = sitk.GetImageFromArray(array.T)  # ITK's axes are x, y, z, its world LPS
        lps = np.diag([-1, -1, 1]) @ affine[:3]
        image.SetSpacing(SPACING)
        image.SetDirection((lps[:, :3] / SPACING).ravel())
        image.SetOrigin(lps[:, 3])
        sitk.WriteImage(image, str(tmp_path / f"{name}.mha"))
    heatmap = load_heatmap({"image": tmp_path / "BRATS_HG0001_T1C.mha", "anomaly_map": str(tmp_path / "case.1.mha")})
    check(heatmap)
    assert heatmap.case_id == "case.1"
    assert list(heatmap.images) == ["t1ce"]


@pytest.mark.parametrize("kind", ["big-endian", "scaled", "8 bit"])
def test_number_formats_of_files(tmp_path, kind):
    values = np.round(simple()["image"] * 20)
    dtype = {"big-endian": ">i2", "scaled": np.int16, "8 bit": np.uint8}[kind]
    header = nib.Nifti1Header(endianness=">" if kind == "big-endian" else "<")
    image = nib.Nifti1Image(values.astype(np.float64), np.eye(4), header)
    image.set_data_dtype(dtype)
    if kind == "scaled":
        image.header.set_slope_inter(0.5, 3)
        values = 0.5 * values + 3
    nib.save(image, tmp_path / "P1.nii")
    heatmap = load_heatmap({"image": tmp_path / "P1.nii", "anomaly_map": tmp_path / "P1.nii"})
    np.testing.assert_array_equal(heatmap.images["image"], values[::-1, ::-1, ::-1])
    assert heatmap.anomaly_map.max() == values.max()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int64, np.float16, np.float64, ">f4", ">i2"])
def test_number_formats_of_arrays(dtype):
    array = (simple()["image"] * 10).astype(dtype)
    heatmap = load_heatmap({"image": array, "anomaly_map": array[::-1][::-1]})
    assert heatmap.anomaly_map.dtype == heatmap.images["image"].dtype == np.float32
    assert heatmap.anomaly_map.max() == float(array.max())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors(dtype):
    tensors = {key: torch.from_numpy(value).to(dtype)[None] for key, value in simple().items()}
    if dtype.is_floating_point:
        tensors["anomaly_map"].requires_grad_()
    heatmap = load_heatmap(tensors | {"anomaly_map": tensors["anomaly_map"] + tensors["image"]})
    assert heatmap.anomaly_map.dtype == np.float32
    assert heatmap.peak == (1, 1, 2)  # the first voxel of the highest slice
    assert heatmap.case_id == "case"
    assert heatmap.map_file is None


def test_metatensors_keep_their_affine():
    affine = affine_of(OBLIQUE["sheared"])
    place = places(affine)
    arrays = {"image": image_at(place), "anomaly_map": score_at(place)}
    item = {key: MetaTensor(array[None], affine=torch.from_numpy(affine)) for key, array in arrays.items()}
    check(load_heatmap(item))
    check(load_heatmap(item | {"affine": np.diag([7, 7, 7, 1])}))  # for arrays that have none
    np.testing.assert_array_equal(item["image"].numpy()[0], arrays["image"])


@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_array_lies_where_the_image_file_does(files, as_type):
    scores = np.asarray(nib.load(files["anomaly_map"]).dataobj)
    check(load_heatmap(files | {"anomaly_map": as_type(scores)}))


def test_affine_of_plain_arrays():
    assert load_heatmap(simple()).spacing == (1.0, 1.0, 1.0)
    item = make_item(OBLIQUE["rotated"])
    for affine in (item["affine"].tolist(), torch.from_numpy(item["affine"]), item["affine"].astype(np.float32)):
        check(load_heatmap(item | {"affine": affine}))
    tensors = {key: torch.from_numpy(value) for key, value in item.items() if key != "affine"}
    check(load_heatmap(tensors | {"affine": item["affine"]}))


def test_inputs_stay_as_they_are():
    item = with_value(simple(), np.nan, (0, 0, 0))
    before = {key: value.copy() for key, value in item.items()}
    heatmap = load_heatmap(item)
    heatmap.anomaly_map[:] = 5
    heatmap.images["image"][:] = 5
    for key, value in before.items():
        np.testing.assert_array_equal(item[key], value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        heatmap.case_id = "another"


@pytest.mark.parametrize(("channels", "names"), [([2, 0], ["t2", "flair"]), ([1], ["t1"])])
def test_channels_of_a_4d_file(tmp_path, channels, names):
    image = np.stack([simple()["image"] * factor for factor in (1, 10, 100)], axis=-1)
    file = save(tmp_path / "BRATS_001.nii.gz", image)
    heatmap = load_heatmap(
        {"image": file, "channels": channels, "modalities": names, "anomaly_map": simple()["anomaly_map"]}
    )
    assert list(heatmap.images) == names
    assert [array.max() for array in heatmap.images.values()] == [5 * 10**channel for channel in channels]


def test_reconstructions_are_not_picked_by_channels(tmp_path):
    images = np.stack([simple()["image"] * factor for factor in (1, 10, 100)])
    item = simple(image=images, channels=[2, 1], modalities=["t2", "t1"])
    heatmap = load_heatmap(item | {"reconstruction": images[:2] + 1})
    assert [array.max() for array in heatmap.reconstructions.values()] == [6, 51]
    assert list(heatmap.reconstructions) == ["t2", "t1"]
    heatmap = load_heatmap(item | {"reconstruction": images[0], "reconstruction_modalities": ["t1"]})
    assert list(heatmap.reconstructions) == ["t1"]
    turned = images[0, ::-1, ::-1, ::-1]
    np.testing.assert_array_equal(heatmap.reconstructions["t1"], turned)


# ------------------------------------------------------------------------------------------------- names and threshold


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["P1_flair.nii.gz", "P1-t1gd.nii.gz"], ["flair", "t1ce"]),
        (["P1/T2.nii.gz"], ["t2"]),
        (["P1_flair.nii.gz", "unknown.nii.gz"], ["image 1", "image 2"]),
        (["scan.nii"], ["image"]),
    ],
)
def test_modalities_are_named_after_files(tmp_path, files, names):
    paths = [save(tmp_path / file, simple()["image"]) for file in files]
    image = paths if len(paths) > 1 else paths[0]
    assert list(load_heatmap(simple(image=image)).images) == names


def test_modality_of_a_4d_file_is_not_that_of_its_name(tmp_path):
    file = save(tmp_path / "P1_flair.nii.gz", np.stack([simple()["image"]] * 2, axis=-1))
    assert list(load_heatmap(simple(image=file)).images) == ["image 1", "image 2"]


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"anomaly_map": "maps/P1.nii.gz"}, "P1"),
        ({"anomaly_map": "maps/P1.nii.gz", "case_id": ""}, "P1"),
        ({"anomaly_map": "maps/P1.nii.gz", "case_id": None}, "P1"),
        ({"anomaly_map": "maps/P1.nii.gz", "case_id": "other"}, "other"),
        ({"anomaly_map": "maps/P1.nii.gz", "case_id": 0}, "0"),
        ({"anomaly_map": "maps/Ärzte, 1.v2.MHA"}, "Ärzte, 1.v2"),
        ({"anomaly_map": "maps/P1.img"}, "P1.img"),
        ({"anomaly_map": "dicom/series 3"}, "series 3"),
        ({"anomaly_map": np.zeros(3)}, "case"),
        ({"anomaly_map": np.zeros(3), "case_id": "P9"}, "P9"),
    ],
)
def test_case_names(item, name):
    assert case_name(item) == name
    assert (map_file(item) is None) == isinstance(item["anomaly_map"], np.ndarray)


@pytest.mark.parametrize("value", [0.3, 0, -2, np.float32(0.25), np.int64(3), np.float64(1e-9)])
def test_threshold_comes_along(value):
    threshold = load_heatmap(simple(threshold=value)).threshold
    assert threshold == value
    assert type(threshold) is float


@pytest.mark.parametrize("value", [True, np.bool_(True), "0.5", np.nan, np.inf, [0.5], 1j])
def test_threshold_is_a_finite_number(value):
    with pytest.raises(ValueError, match="threshold must be a finite number, got "):
        load_heatmap(simple(threshold=value))


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anomaly_map": np.zeros((7, 8, 10))}, r"\(7, 8, 10\).*\(7, 8, 9\)"),
        ({"label": np.zeros((8, 7, 9))}, r"\(8, 7, 9\).*\(7, 8, 9\)"),
        ({"brain": np.zeros((7, 8, 9))}, "brain mask .* is empty"),
        ({"reconstruction": np.ones((6, 8, 9))}, r"\(6, 8, 9\)"),
        ({"anomaly_map": np.ones((2, 7, 8, 9))}, "has 2 channels, but an anomaly map has one"),
        ({"label": np.ones((2, 7, 8, 9))}, "a segmentation has one"),
        ({"label": np.full((7, 8, 9), 0.5)}, "not whole numbers"),
        ({"image": np.zeros((7, 8, 9))}, "nothing but background"),
        ({"image": np.full((7, 8, 9), np.nan)}, "NaN or infinite"),
        ({"image": np.ones((8, 9))}, "a volume has three axes"),
        ({"image": np.ones((1, 1, 7, 8, 9))}, "a volume has three axes"),
        ({"modalities": ["flair", "t1"]}, "1 channels, but modalities are flair, t1"),
        ({"image": np.stack([simple()["image"]] * 2), "modalities": ["t1"] * 2}, "2 channels, but .* are t1, t1"),
        ({"reconstruction": np.ones((2, 7, 8, 9))}, r"has 2 channels, expected those of image, .* among image"),
        ({"reconstruction": np.ones((7, 8, 9)), "reconstruction_modalities": ["t1"]}, "of t1, which are among image"),
        (
            {"reconstruction": np.ones((2, 7, 8, 9)), "reconstruction_modalities": ["image", "image"]},
            "of image, image, which are among image",
        ),
        ({"reconstruction": np.ones((7, 8, 9)), "reconstruction_modalities": ["image", "t1"]}, "of image, t1, which"),
        ({"affine": np.eye(3)}, r"affine of shape \(4, 4\)"),
        ({"affine": np.diag([1, 0, 1, 1])}, "affine without an inverse"),
        ({"affine": np.diag([1, np.nan, 1, 1])}, "affine without an inverse"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_heatmap(simple(**change))


def test_modalities_of_a_missing_reconstruction_do_not_matter():
    assert load_heatmap(simple(reconstruction_modalities=["t1"], reconstruction=None)).reconstructions == {}


def test_other_place_is_refused(files, tmp_path):
    scores = nib.load(files["anomaly_map"])
    affine = scores.affine.copy()
    affine[1, 3] += 0.0005
    check(load_heatmap(files | {"anomaly_map": save(tmp_path / "near.nii.gz", scores.get_fdata(), affine)}))
    affine[1, 3] += 0.5
    moved = save(tmp_path / "moved.nii.gz", scores.get_fdata(), affine)
    with pytest.raises(ValueError, match=r"moved\.nii\.gz lies elsewhere than .*P1_flair.*0\.5005"):
        load_heatmap(files | {"anomaly_map": moved})


@pytest.mark.parametrize(
    ("item", "lacks"),
    [
        ({"image": 1}, "The case lacks anomaly_map, got image"),
        ({"anomaly_map": 1, "case_id": "P1"}, "P1 lacks image, got anomaly_map, case_id"),
        ({"image": None, "anomaly_map": None}, "lacks image, anomaly_map"),
        ({}, "lacks image, anomaly_map"),
    ],
)
def test_image_and_map_are_needed(item, lacks):
    with pytest.raises(KeyError, match=lacks):
        load_heatmap(item)


def test_item_is_a_dictionary():
    with pytest.raises(TypeError, match="dictionary, such as `find_maps` returns, not str"):
        load_heatmap("maps/P1.nii.gz")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.nii\.gz does not exist"):
        load_heatmap(simple(anomaly_map=tmp_path / "none.nii.gz"))
    (tmp_path / "bad.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(OSError, match=r"bad\.nii\.gz cannot be read"):
        load_heatmap(simple(image=tmp_path / "bad.nii.gz"))


def test_shape_is_that_of_the_scan():
    assert load_heatmap(make_item(TURNS["IRP"])).brain.shape == (SHAPE[1], SHAPE[2], SHAPE[0])
