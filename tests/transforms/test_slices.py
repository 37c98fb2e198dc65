"""Slices of volumes without lesions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from ssmctb_monai.transforms import CheckContextd, RandSlicesd

SHAPE = (12, 10, 8)


@pytest.fixture
def item():
    """Every voxel holds its own number, from 1."""
    image = torch.arange(1.0, 1 + 12 * 10 * 8).view(1, *SHAPE)
    brain = torch.ones(1, *SHAPE, dtype=torch.uint8)
    return {"image": image, "brain": brain, "label": torch.zeros(1, *SHAPE), "case_id": "A"}


def drawn(item, **options):
    """Plane axis and index of each slice, from the numbers in it."""
    options = {"roi_size": (12, 12), "num_samples": 200, "min_brain": 0.0, "min_size": 1, **options}
    found = []
    for sample in RandSlicesd(**options).set_random_state(0)(item):
        values = sample["image"][sample["image"] > 0].long() - 1
        places = torch.stack([values // 80, values // 8 % 10, values % 8])
        constant = [axis for axis in range(3) if len(places[axis].unique()) == 1]
        assert len(constant) == 1
        found.append((constant[0], int(places[constant[0]][0])))
    return found


def test_every_plane_and_slice_is_drawn(item):
    found = drawn(item, planes=("axial", "coronal", "sagittal"), num_samples=600)
    assert {axis for axis, _ in found} == {0, 1, 2}
    assert set(found) == {(axis, index) for axis in range(3) for index in range(SHAPE[axis])}
    share = [sum(axis == wanted for axis, _ in found) / 600 for wanted in range(3)]
    assert all(0.25 < part < 0.42 for part in share)
    assert {axis for axis, _ in drawn(item, planes="coronal")} == {1}


@pytest.mark.parametrize(
    ("min_size", "planes", "expected"),
    [(9, ("coronal", "axial"), {2}), (8, ("coronal", "axial"), {1, 2}), (11, ("coronal", "axial"), {1})],
)
def test_planes_of_thin_slices_are_left_out(item, min_size, planes, expected):
    """Coronal slices measure 12 x 8, axial ones 12 x 10; where all are thin, the first plane counts."""
    assert {axis for axis, _ in drawn(item, planes=planes, min_size=min_size)} == expected


def test_no_lesion_and_no_neighbour_within_the_margin(item):
    item["label"][0, 3, 3, 4] = 1e-3
    assert {index for _, index in drawn(item)} == {0, 1, 2, 3, 5, 6, 7}
    assert {index for _, index in drawn(item, margin=(0, 0, 2))} == {0, 1, 7}
    assert {index for _, index in drawn(item, margin=(5, 5, 0))} == {0, 1, 2, 3, 5, 6, 7}
    planes = drawn(item, planes=("axial", "sagittal"), margin=1)
    assert {index for axis, index in planes if axis == 0} == {0, 1, 5, 6, 7, 8, 9, 10, 11}


def test_no_lesion_in_any_channel(item):
    item["label"] = torch.zeros(2, *SHAPE)
    item["label"][1, 3, 3, 4] = 1
    assert {index for _, index in drawn(item)} == {0, 1, 2, 3, 5, 6, 7}


def test_enough_brain(item):
    item["brain"][..., 2:5] = 0
    item["brain"][0, 6:, :, 5] = 0  # half of the slice, 60 of 144 voxels
    assert {index for _, index in drawn(item, min_brain=0.5)} == {0, 1, 6, 7}
    assert {index for _, index in drawn(item, min_brain=0.4)} == {0, 1, 5, 6, 7}


def test_padded_and_cut_alike_and_what_is_handed_on(item):
    item["lesion_free_positions"] = torch.zeros(3, 3)
    samples = RandSlicesd(roi_size=(6, 14), num_samples=40, min_brain=0).set_random_state(1)(item)
    firsts = set()
    for sample in samples:
        assert sample.keys() == {"image", "brain", "case_id"}
        assert sample["image"].shape == sample["brain"].shape == (1, 6, 14)
        assert ((sample["image"] > 0) == (sample["brain"] > 0)).all()
        assert (sample["image"][..., :2] == 0).all()
        assert (sample["image"][..., 12:] == 0).all()
        firsts.add(int(sample["image"][0, 0, 2] - 1) // 80)
    assert firsts == set(range(7))


def test_seeded_and_plain(item):
    item["image"] = MetaTensor(item["image"])
    first, again = (
        [
            s["image"]
            for s in RandSlicesd(
                roi_size=(12, 12), min_brain=0, num_samples=5, planes=("axial", "coronal"), min_size=1
            ).set_random_state(3)(item)
        ]
        for _ in range(2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not isinstance(first[0], MetaTensor)


def runs_drawn(item, context, **options):
    """Indices of the axial slices of each run, from the numbers in them."""
    draw = RandSlicesd(roi_size=(12, 10), num_samples=300, min_brain=0, context=context, **options)
    samples = draw.set_random_state(0)(item)
    assert {tuple(sample["image"].shape) for sample in samples} == {(1 + len(context), 12, 10)}
    assert {tuple(sample["brain"].shape) for sample in samples} == {(1, 12, 10)}
    return {tuple((sample["image"][:, 0, 0].long() - 1).remainder(8).tolist()) for sample in samples}


def test_runs_in_both_directions(item):
    expected = {(i, i - 1, i - 3) for i in range(3, 8)} | {(i, i + 1, i + 3) for i in range(5)}
    assert runs_drawn(item, (-1, -3)) == expected
    # 8 slices: neither direction is inside for those in the middle
    middle = {(i, max(i - 5, 0)) for i in range(3, 8)} | {(i, min(i + 5, 7)) for i in range(5)}
    assert runs_drawn(item, (-5,)) == middle


def test_no_slice_is_all_of_its_own_context(item):
    """8 slices: neither direction of the first one lies inside, and below it there is none."""
    assert runs_drawn(item, (-9, -5)) == {(i, 0, max(i - 5, 0)) for i in range(1, 8)} | {
        (i, 7, min(i + 5, 7)) for i in range(7)
    }


def test_padding_is_no_context(item):
    """Brain from the third to the seventh slice."""
    item["brain"][..., :2] = item["brain"][..., 7:] = 0
    assert runs_drawn(item, (-2,)) == {(i, i - 2) for i in range(4, 7)} | {(i, i + 2) for i in range(2, 5)}
    assert runs_drawn(item, (-4,)) == {(6, 2), (2, 6)} | {(i, j) for i in range(3, 6) for j in (2, 6)}
    with pytest.raises(ValueError, match=r"No slice has another one at context \[-5\], of 5 in all"):
        runs_drawn(item, (-5,))


def test_no_slice_of_a_run_has_a_lesion(item):
    item["label"][0, 3, 3, 4] = 1e-3
    assert runs_drawn(item, (-2,)) == {(2, 0), (3, 1), (5, 3), (7, 5), (0, 2), (1, 3), (3, 5), (5, 7)}
    assert runs_drawn(item, (-2,), margin=(0, 0, 1)) == {(2, 0), (0, 2)}


def test_channels_of_a_run(item):
    """The slice first, then its context, slice by slice; brain and cut are those of the slice."""
    item["image"] = torch.cat([item["image"], -item["image"]])
    item["brain"][..., 3] = 0
    options = {"roi_size": (6, 14), "num_samples": 50, "min_brain": 0.1, "context": (-1, -2)}
    for sample in RandSlicesd(**options).set_random_state(1)(item):
        assert sample["image"].shape == (6, 6, 14)
        assert sample["brain"][..., 2:12].all()
        assert torch.equal(sample["image"][1::2], -sample["image"][::2])
        steps = sample["image"][::2, :, 2:12].diff(dim=0)
        assert torch.equal(steps, torch.full_like(steps, float(steps[0, 0, 0])))
        assert abs(float(steps[0, 0, 0])) == 1


def test_volumes_that_have_no_context():
    image = MetaTensor(torch.ones(1, 6, 5, 1), meta={"filename_or_obj": "thin.nii.gz"})
    image = F.pad(image, (2, 1, 0, 0, 3, 3))
    for planes, context, size in (("axial", [-1], 1), ("coronal", [5, -7], 5), (["sagittal", "axial"], [2], 1)):
        with pytest.raises(ValueError, match=rf"thin.nii.gz: No slice has another one at context .*, of {size} in all"):
            CheckContextd("image", context=context, planes=planes)({"image": image})
    assert CheckContextd("image", context=[4, -7], planes="coronal")({"image": image}) == {"image": image}
    assert CheckContextd("image", context=[])({"image": image}) == {"image": image}


def test_faults_are_named(item):
    with pytest.raises(ValueError, match="context must be whole numbers"):
        RandSlicesd(roi_size=(8, 8), context=(0,))
    with pytest.raises(ValueError, match=r"No slice has another one at context \[-1\], of 1 in all"):
        RandSlicesd(roi_size=(8, 8), context=(-1,))({name: item[name][..., :1] for name in ("image", "brain", "label")})
    with pytest.raises(ValueError, match="planes must be some of"):
        RandSlicesd(roi_size=(8, 8), planes="oblique")
    with pytest.raises(ValueError, match="num_samples"):
        RandSlicesd(roi_size=(8, 8), num_samples=0)
    with pytest.raises(ValueError, match="min_size"):
        RandSlicesd(roi_size=(8, 8), min_size=0)
    with pytest.raises(ValueError, match="min_brain"):
        RandSlicesd(roi_size=(8, 8), min_brain=1.5)
    for margin in (-1, (0, 0, -1), 1.5):
        with pytest.raises(ValueError, match="margin must be"):
            RandSlicesd(roi_size=(8, 8), margin=margin)
    for roi_size in ((8, 8, 1), (0, 0), (8, 8.5), (8,)):
        with pytest.raises(ValueError, match="roi_size must be"):
            RandSlicesd(roi_size=roi_size)
    item["image"] = MetaTensor(item["image"], meta={"filename_or_obj": "case_flair.nii.gz"})
    item["label"][:] = 1
    with pytest.raises(ValueError, match="case_flair"):
        RandSlicesd(roi_size=(8, 8))(item)
