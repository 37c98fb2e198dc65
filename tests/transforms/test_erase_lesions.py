"""Lesions become background, and nothing of them is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import binary_dilation

from ssmctb_monai.transforms import EraseLesions, EraseLesionsd


@pytest.fixture
def case():
    image = torch.rand(2, 9, 8, 7, generator=torch.Generator().manual_seed(0)) + 1
    label = torch.zeros(1, 9, 8, 7)
    label[0, 4, 4, 3], label[0, 8, 0, 6] = 1, 1e-3
    return {"image": image, "brain": torch.ones(1, 9, 8, 7, dtype=torch.uint8), "label": label}


@pytest.mark.parametrize("margin", [0, 1, (2, 0, 1)])
def test_lesions_and_margin_are_gone_and_all_else_is_kept(case, margin):
    image, brain = EraseLesions(margin)(case["image"], case["brain"], case["label"])
    box = np.ones([2 * side + 1 for side in (margin if isinstance(margin, tuple) else (margin,) * 3)])
    erased = torch.from_numpy(binary_dilation(case["label"][0] > 0, box))
    assert (image[:, erased] == 0).all()
    assert (brain[:, erased] == 0).all()
    torch.testing.assert_close(image[:, ~erased], case["image"][:, ~erased], rtol=0, atol=0)
    assert (brain[:, ~erased] == 1).all()
    assert brain.dtype == torch.uint8


def test_input_is_kept_and_kinds_too(case):
    before = {key: value.clone() for key, value in case.items()}
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    item = EraseLesionsd(margin=1)({**case, "image": MetaTensor(case["image"], affine=affine)})
    torch.testing.assert_close(item["image"].affine, affine)
    assert not item["label"].any()
    assert item["image"].meta.keys() >= {"affine"}
    for key, value in before.items():
        torch.testing.assert_close(case[key], value, rtol=0, atol=0)


def test_dictionary_takes_every_key(case):
    other = case["image"] * 2
    item = EraseLesionsd(["image", "other"], margin=1)({**case, "other": other})
    expected, brain = EraseLesions(1)(other, case["brain"], case["label"])
    torch.testing.assert_close(item["other"], expected)
    torch.testing.assert_close(item["brain"], brain)


def test_faults_are_named(case):
    with pytest.raises(ValueError, match="margin must not be negative"):
        EraseLesions(-1)
    with pytest.raises(ValueError, match=r"\(9, 8, 7\), but the image \(9, 8, 6\)"):
        EraseLesions()(case["image"][..., :6], case["brain"], case["label"])
    full = MetaTensor(torch.ones(1, 9, 8, 7), meta={"filename_or_obj": "case_seg.nii.gz"})
    with pytest.raises(ValueError, match=r"Nothing of the brain .* case_seg"):
        EraseLesionsd()({**case, "label": full})
