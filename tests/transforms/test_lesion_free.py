"""Lesion-free sampling: exact, uniform, and never a lesion voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose, CropForegroundd, LoadImaged, Orientationd, Spacingd, SpatialPadd
from scipy.stats import chisquare

from ssmctb_monai.data.readers import SimpleITKReader
from ssmctb_monai.transforms import (
    BrainMaskd,
    LesionFreePositions,
    LesionFreePositionsd,
    LesionFreeRegion,
    LesionFreeRegiond,
    RandLesionFreeCrop,
    RandLesionFreeCropd,
    RobustScaleIntensityd,
)
from ssmctb_monai.transforms.lesion_free import window_sums


def brute_force_positions(lesion, brain, roi_size, margin, min_brain):
    """Every position, one crop after the other."""
    positions = []
    starts = [range(size - crop + 1) for size, crop in zip(lesion.shape, roi_size, strict=True)]
    for start in itertools.product(*starts):
        crop = tuple(slice(first, first + size) for first, size in zip(start, roi_size, strict=True))
        grown = tuple(
            slice(max(0, first - m), first + size + m) for first, size, m in zip(start, roi_size, margin, strict=True)
        )
        if not lesion[grown].any() and brain[crop].mean() >= min_brain:
            positions.append(start)
    return np.array(positions).reshape(-1, lesion.ndim)


def case(shape, seed, lesion_share=0.01, brain_share=0.6):
    rng = np.random.default_rng(seed)
    return rng.random((1, *shape)) < lesion_share, rng.random((1, *shape)) < brain_share


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("shape", "lower", "upper"),
    [
        ((7, 5), (0, 0), (3, 2)),
        ((7, 5), (-2, -1), (4, 9)),
        ((5, 6, 4), (0, 0, 0), (5, 6, 4)),
        ((5, 6, 4), (-1, -9, 1), (2, 3, 3)),
        ((6,), (2,), (2,)),
    ],
)
def test_window_sums_against_brute_force(shape, lower, upper):
    mask = np.random.default_rng(0).integers(0, 5, shape)
    starts = [size - 1 for size in shape]
    expected = np.zeros(starts, dtype=int)
    for start in np.ndindex(*starts):
        window = tuple(
            slice(max(0, first + low), max(0, first + high))
            for first, low, high in zip(start, lower, upper, strict=True)
        )
        expected[start] = mask[window].sum()
    sums = window_sums(mask, lower, upper, starts)
    np.testing.assert_array_equal(sums, expected)


def test_window_sums_of_a_boolean_mask_do_not_overflow():
    assert window_sums(np.ones((300, 300), bool), (0, 0), (300, 300), (1, 1)).item() == 90000


# ----------------------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shape", "roi_size", "margin", "min_brain"),
    [
        ((13, 11), (4, 3), (0, 0), 0.5),
        ((13, 11), (4, 3), (2, 1), 0.5),
        ((9, 8, 10), (3, 4, 2), (0, 0, 0), 0.6),
        ((9, 8, 10), (3, 4, 2), (1, 0, 3), 0.55),
        ((9, 8, 10), (1, 1, 1), (0, 0, 0), 1.0),
        ((6, 7, 5), (2, 2, 2), (9, 9, 9), 0.0),
    ],
)
def test_positions_are_exact(shape, roi_size, margin, min_brain, seed):
    lesion, brain = case(shape, seed)
    positions = LesionFreePositions(roi_size, margin, min_brain)(lesion, brain)
    expected = brute_force_positions(lesion[0], brain[0], roi_size, margin, min_brain)
    np.testing.assert_array_equal(positions, expected)


def test_cases_above_have_positions_and_refusals():
    lesion, brain = case((9, 8, 10), 0)
    count = len(LesionFreePositions((3, 4, 2), (1, 0, 3), 0.55)(lesion, brain))
    assert 10 < count < 7 * 5 * 9 - 10


def test_margin_at_the_border_is_cut_off():
    """A lesion in the last row keeps crops with margin 2 away; the far border, outside the image, does not."""
    lesion = np.zeros((1, 10, 4))
    lesion[0, 9] = 1
    positions = LesionFreePositions((3, 4), margin=2)(lesion, np.ones_like(lesion))
    np.testing.assert_array_equal(positions, [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]])


def test_margin_per_axis_and_one_for_all():
    lesion = np.zeros((1, 9, 9))
    lesion[0, 4, 4] = 1
    brain = np.ones_like(lesion)
    assert len(LesionFreePositions(1, 0)(lesion, brain)) == 81 - 1
    assert len(LesionFreePositions(1, 1)(lesion, brain)) == 81 - 9
    assert len(LesionFreePositions(1, (0, 2))(lesion, brain)) == 81 - 5


@pytest.mark.parametrize(("voxels", "side", "share"), [(7, 10, 0.07), (57, 10, 0.57), (14, 5, 0.56), (3, 5, 0.12)])
def test_share_of_brain_is_at_least(voxels, side, share):
    brain = np.zeros((1, side * side), bool)
    brain[0, :voxels] = True
    find = LesionFreePositions(side, min_brain=share)
    lesion = np.zeros((1, side, side))
    assert len(find(lesion, brain.reshape(1, side, side))) == 1
    brain[0, 0] = False
    assert len(find(lesion, brain.reshape(1, side, side))) == 0


def test_slices_along_any_axis():
    lesion = np.zeros((1, 6, 7, 5))
    lesion[0, 2, 3, 1] = lesion[0, 2, 3, 4] = 1
    brain = np.ones_like(lesion)
    brain[..., 0] = 0
    axial = LesionFreePositions((-1, -1, 1), min_brain=0.5)(lesion, brain)
    np.testing.assert_array_equal(axial, [[0, 0, 2], [0, 0, 3]])
    sagittal = LesionFreePositions((1, -1, -1))(lesion, brain)
    np.testing.assert_array_equal(sagittal, [[index, 0, 0] for index in (0, 1, 3, 4, 5)])
    axial = LesionFreePositions((-1, -1, 1), margin=(0, 0, 1), min_brain=0.5)(lesion, brain)
    assert len(axial) == 0


@pytest.mark.parametrize("value", [1, 4, -1, 0.001, 255])
def test_whatever_is_not_0_is_lesion(value):
    label = torch.zeros(1, 5, 5)
    label[0, 2, 2] = value
    assert len(LesionFreePositions(1)(label, torch.ones(1, 5, 5))) == 24


def test_tensors_and_metatensors_give_the_same():
    lesion, brain = case((9, 8, 10), 0)
    find = LesionFreePositions((3, 4, 2), 1, 0.5)
    expected = find(lesion, brain)
    assert len(expected)
    for kind in (torch.as_tensor, MetaTensor):
        np.testing.assert_array_equal(find(kind(lesion.astype(np.uint8)), kind(brain.astype(np.uint8))), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roi_size": 0}, "roi_size"),
        ({"roi_size": (4, -2, 4)}, "roi_size"),
        ({"margin": -1}, "margin"),
        ({"margin": (0, 0, -3)}, "margin"),
        ({"min_brain": 1.01}, "min_brain"),
        ({"min_brain": -0.1}, "min_brain"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LesionFreePositions(**{"roi_size": 4, **arguments})


def test_volume_smaller_than_the_crop_is_refused_by_file():
    label = MetaTensor(torch.zeros(1, 8, 8, 3), meta={"filename_or_obj": "case_7_seg.nii"})
    with pytest.raises(ValueError, match=r"case_7_seg\.nii has shape \(8, 8, 3\)"):
        LesionFreePositions(4)(label, torch.ones(1, 8, 8, 3))
    crop = RandLesionFreeCrop((4, 4, 4))
    crop.randomize(np.zeros((1, 3), int))
    with pytest.raises(ValueError, match="smaller than the crop"):
        crop(torch.zeros(1, 8, 8, 3))


def test_shapes_that_differ_are_refused_by_file():
    label = MetaTensor(torch.zeros(1, 8, 8), meta={"filename_or_obj": "case_7_seg.nii"})
    with pytest.raises(ValueError, match=r"case_7_seg\.nii.*\(8, 8\).*\(8, 9\)"):
        LesionFreePositions(4)(label, torch.ones(1, 8, 9))


# -------------------------------------------------------------------------------------------------------------- region


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shape", "roi_size", "margin", "min_brain"),
    [
        ((13, 11), (4, 3), (0, 0), 0.5),
        ((13, 11), (4, 3), (2, 1), 0.5),
        ((13, 11), (-1, 1), (0, 1), 0.2),
        ((9, 8, 10), (3, 4, 2), (0, 0, 0), 0.6),
        ((9, 8, 10), (3, 4, 2), (1, 0, 3), 0.55),
        ((9, 8, 10), (2, 2, -1), (0, 0, 0), 0.4),
        ((9, 8, 10), (1, 1, 1), (0, 0, 0), 1.0),
        ((6, 7, 5), (2, 2, 2), (9, 9, 9), 0.0),
    ],
)
def test_region_is_exact(shape, roi_size, margin, min_brain, seed):
    lesion, brain = case(shape, seed, lesion_share=0.02)
    sizes = [size if roi == -1 else roi for roi, size in zip(roi_size, shape, strict=True)]
    expected = np.zeros(shape, bool)
    for start in brute_force_positions(lesion[0], brain[0], sizes, margin, min_brain):
        expected[tuple(slice(first, first + size) for first, size in zip(start, sizes, strict=True))] = True
    region = LesionFreeRegion(roi_size, margin, min_brain)(lesion, brain)
    assert region.dtype == np.uint8
    np.testing.assert_array_equal(region, (expected & brain[0])[None])


def test_regions_above_hold_some_of_the_brain():
    lesion, brain = case((9, 8, 10), 0, lesion_share=0.02)
    region = LesionFreeRegion((3, 4, 2), (1, 0, 3), 0.55)(lesion, brain)
    assert 20 < region.sum() < brain.sum() - 20


def test_region_by_hand():
    """Crops of three voxels fit left of the lesion and right of it, and leave out what only a lesion's crop covers."""
    lesion = np.array([[[0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]]])
    brain = np.array([[[1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1]]])
    region = LesionFreeRegion((1, 3), min_brain=0)(lesion, brain)
    np.testing.assert_array_equal(region, [[[1, 1, 0, 1, 0, 0, 0, 0, 1, 1, 1]]])
    region = LesionFreeRegion((1, 3), margin=(0, 1), min_brain=0)(lesion, brain)
    np.testing.assert_array_equal(region, [[[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]]])
    region = LesionFreeRegion((1, 3), min_brain=1)(lesion, brain)
    np.testing.assert_array_equal(region, [[[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]]])


def test_region_is_what_crops_reach():
    """Many crops of training cover all of the region's brain, and nothing else of the brain."""
    lesion, brain = case((20, 17), 1, lesion_share=0.02)
    item = item_of(lesion, brain, (4, 3), margin=1, min_brain=0.5)
    reached = np.zeros_like(brain)
    for crop in RandLesionFreeCropd(roi_size=(4, 3), num_samples=3000).set_random_state(0)(item):
        reached[(0, *crop["image"].astype(int))] = True
    item = LesionFreeRegiond(roi_size=(4, 3), margin=1, min_brain=0.5)(item)
    assert 50 < item["lesion_free"].sum() < brain.sum() - 20
    np.testing.assert_array_equal(item["lesion_free"], reached & brain)
    assert not item["lesion_free"][lesion].any()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_region_without_positions_is_empty(kind):
    label, brain = kind(np.ones((1, 6, 7, 5), np.float32)), kind(np.ones((1, 6, 7, 5), np.uint8))
    region = LesionFreeRegion(3)(label, brain)
    assert type(region) is type(label)
    assert region.shape == (1, 6, 7, 5)
    assert not region.any()


def test_region_lies_where_the_label_lies():
    lesion, brain = case((9, 8, 10), 0)
    affine = torch.diag(torch.tensor([-2.0, 2, 3, 1], dtype=torch.float64))
    data = {"seg": MetaTensor(lesion.astype(np.float32), affine=affine), "mask": MetaTensor(brain.astype(np.uint8))}
    item = LesionFreeRegiond("seg", roi_size=3, brain_key="mask", region_key="normal")(data)
    assert set(data) == {"seg", "mask"}
    assert set(item) == {"seg", "mask", "normal"}
    assert item["normal"].dtype == torch.uint8
    assert torch.equal(item["normal"].affine, affine)
    np.testing.assert_array_equal(item["normal"], LesionFreeRegion(3)(lesion, brain))


def test_ill_arguments_of_the_region():
    with pytest.raises(ValueError, match="min_brain"):
        LesionFreeRegiond(roi_size=4, min_brain=2)
    label = MetaTensor(torch.zeros(1, 8, 8, 3), meta={"filename_or_obj": "case_7_seg.nii"})
    with pytest.raises(ValueError, match=r"case_7_seg\.nii has shape \(8, 8, 3\)"):
        LesionFreeRegion(4)(label, torch.ones(1, 8, 8, 3))
    with pytest.raises(ValueError, match=r"case_7_seg\.nii.*\(8, 8, 3\).*\(8, 8, 4\)"):
        LesionFreeRegion(2)(label, torch.ones(1, 8, 8, 4))


# --------------------------------------------------------------------------------------------------------------- crops


def item_of(lesion, brain, roi_size, margin=0, min_brain=0.2):
    """Item whose image holds the coordinates of each voxel."""
    coordinates = np.stack(np.meshgrid(*map(np.arange, lesion.shape[1:]), indexing="ij")).astype(np.float32)
    item = {"image": coordinates, "label": lesion.astype(np.uint8), "brain": brain.astype(np.uint8), "patient": "a"}
    return LesionFreePositionsd(roi_size=roi_size, margin=margin, min_brain=min_brain)(item)


@pytest.mark.parametrize(
    ("shape", "roi_size"), [((20, 17), (4, 3)), ((9, 10, 8), (3, 2, 3)), ((6, 7, 12), (-1, -1, 1))]
)
def test_crops_never_hold_a_lesion_voxel(shape, roi_size):
    lesion, brain = case(shape, 1, lesion_share=0.008)
    item = item_of(lesion, brain, roi_size)
    crops = RandLesionFreeCropd(roi_size=roi_size, num_samples=200).set_random_state(0)(item)
    assert len(crops) == 200
    for crop in crops:
        assert crop["image"].shape[1:] == tuple(n if r == -1 else r for r, n in zip(roi_size, shape, strict=True))
        assert crop["brain"].shape[1:] == crop["image"].shape[1:]
        voxels = tuple(crop["image"].astype(int))
        assert not lesion[0][voxels].any()
        np.testing.assert_array_equal(crop["brain"][0], brain[0][voxels])  # all keys are cropped at the same place
        assert crop["brain"].mean() >= 0.2
    assert len({tuple(crop["image"].reshape(len(shape), -1)[:, 0]) for crop in crops}) > 3


def test_positions_are_drawn_uniformly():
    lesion = np.zeros((1, 7, 8), bool)
    lesion[0, 3, 2:4] = True
    item = item_of(lesion, np.ones_like(lesion), (2, 2))
    positions = item["lesion_free_positions"]
    crops = RandLesionFreeCropd(roi_size=2, num_samples=3000).set_random_state(0)(item)
    drawn = [tuple(crop["image"][:, 0, 0].astype(int)) for crop in crops]
    counts = [drawn.count(tuple(position)) for position in positions]
    assert len(counts) == 6 * 7 - 6
    assert sum(counts) == 3000  # nothing else was drawn
    assert chisquare(counts).pvalue > 0.001


def test_reproducible_by_seed():
    lesion, brain = case((20, 17), 1, lesion_share=0.005)
    item = item_of(lesion, brain, (4, 3))

    def draw(seed):
        crops = RandLesionFreeCropd(roi_size=(4, 3), num_samples=20).set_random_state(seed)(item)
        return np.stack([crop["image"] for crop in crops])

    np.testing.assert_array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_what_is_handed_on():
    lesion, brain = case((9, 8), 0)
    item = item_of(lesion, brain, 2)
    kept = dict(item)
    (crop,) = RandLesionFreeCropd(roi_size=2)(item)
    assert set(crop) == {"image", "brain", "patient"}
    assert item.keys() == kept.keys()
    assert all(item[key] is kept[key] for key in kept)


def test_other_keys():
    lesion, brain = case((9, 8), 0)
    data = {"x": brain.astype(float), "seg": lesion, "mask": brain}
    data = LesionFreePositionsd("seg", roi_size=3, brain_key="mask", positions_key="where", min_brain=0.1)(data)
    crops = RandLesionFreeCropd("x", roi_size=3, num_samples=2, positions_key="where", label_key="seg")(data)
    assert [set(crop) for crop in crops] == [{"x", "mask"}] * 2
    assert [crop["x"].shape for crop in crops] == [(1, 3, 3)] * 2


def test_no_position_is_an_error():
    item = item_of(np.ones((1, 6, 6)), np.ones((1, 6, 6)), 3)
    assert item["lesion_free_positions"].shape == (0, 2)
    with pytest.raises(ValueError, match="no lesion-free position"):
        RandLesionFreeCropd(roi_size=3)(item)


@pytest.mark.parametrize("roi_size", [2, 4])
def test_positions_of_another_label_or_size_are_caught(roi_size):
    lesion = np.zeros((1, 6, 6))
    item = item_of(lesion, np.ones_like(lesion), 2)
    item["label"] = lesion + 1 if roi_size == 2 else item["label"]
    if roi_size == 4:
        item["label"][0, 2:4, 2:4] = 1
        item["lesion_free_positions"] = np.array([[0, 0]])  # free in 2 x 2, not in 4 x 4
    with pytest.raises(RuntimeError, match="lesion voxel"):
        RandLesionFreeCropd(roi_size=roi_size)(item)


def test_crop_without_a_draw_and_ill_num_samples():
    with pytest.raises(RuntimeError, match="randomize"):
        RandLesionFreeCrop(2)(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="num_samples"):
        RandLesionFreeCropd(roi_size=2, num_samples=0)


def test_crops_make_a_batch():
    lesion, brain = case((9, 8), 0)
    transform = Compose([LesionFreePositionsd(roi_size=3), RandLesionFreeCropd(roi_size=3, num_samples=2)])
    data = [{"image": brain.astype(np.float32), "brain": brain, "label": lesion}] * 2
    batch = next(iter(DataLoader(Dataset(data, transform), batch_size=2, collate_fn=list_data_collate)))
    assert batch["image"].shape == (4, 1, 3, 3)
    assert set(batch) == {"image", "brain"}


# ---------------------------------------------------------------------------------------------------------- real cases


@pytest.mark.parametrize(
    "case_name",
    [
        "Brats17_TCIA_639_1",  # outliers
        pytest.param("BraTS2021_00006", marks=pytest.mark.process),
        pytest.param("brats_2013_pat0001_1", marks=pytest.mark.process),
    ],
)
def test_lesion_voxels_of_real_cases_never_reach_a_batch(real_data, case_name):
    """The label goes along as a second channel of the image, and coordinates as three more; both stay clear of it."""
    folder, keys = real_data / "brats" / case_name, ["image", "label"]
    files = {"image": folder / f"{case_name}_flair.nii.gz", "label": folder / f"{case_name}_seg.nii.gz"}
    volumes = ["image", "label", "brain"]
    item = Compose(
        [
            LoadImaged(keys, reader=SimpleITKReader(), ensure_channel_first=True),
            BrainMaskd(),
            Orientationd(volumes, "RAS", labels=None),
            Spacingd(volumes, (2.0, 2.0, 2.0), mode=("bilinear", "nearest", "nearest")),
            CropForegroundd(volumes, source_key="brain", margin=2, allow_smaller=True),
            RobustScaleIntensityd(),
            SpatialPadd(volumes, (32, 32, 32)),
        ]
    )(files)
    label = item["label"].numpy().copy()[0]
    assert (label > 0).sum() > 1000
    assert item["image"].min() == 0
    assert item["image"].max() <= 1
    assert 0.4 < item["image"][item["brain"] > 0].mean() < 0.65  # outliers and z-scores have not spoilt the range
    coordinates = torch.stack(torch.meshgrid(*map(torch.arange, label.shape), indexing="ij"))
    item["image"] = torch.cat([item["image"].as_tensor(), torch.as_tensor(label)[None], coordinates])
    margin = 2
    item = LesionFreeRegiond(roi_size=32, margin=margin, min_brain=0.2)(item)
    region = item["lesion_free"].numpy()[0] > 0
    assert region.sum() > 1000
    assert not region[label != 0].any()
    item = LesionFreePositionsd(roi_size=32, margin=margin, min_brain=0.2)(item)
    assert len(item["lesion_free_positions"]) > 100
    crop = RandLesionFreeCropd(roi_size=32, num_samples=16)
    loader = DataLoader(Dataset([item] * 2, crop), batch_size=2, collate_fn=list_data_collate)
    (batch,) = list(loader)
    assert batch["image"].shape == (32, 5, 32, 32, 32)
    assert "label" not in batch
    assert (batch["image"][:, 1] == 0).all()
    for sample, brain in zip(batch["image"][:, 2:].long().numpy(), batch["brain"][:, 0].numpy() > 0, strict=True):
        assert region[tuple(sample)][brain].all()
        first, last = sample[:, 0, 0, 0], sample[:, -1, -1, -1]
        np.testing.assert_array_equal(last - first, 31)
        grown = tuple(slice(max(0, a - margin), b + 1 + margin) for a, b in zip(first, last, strict=True))
        assert not label[grown].any()
    assert batch["brain"].float().mean(dim=(1, 2, 3, 4)).min() >= 0.2
