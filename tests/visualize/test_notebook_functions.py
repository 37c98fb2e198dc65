"""The 3D view, and what both views say where the extra is missing."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest
from heatmap_cases import OBLIQUE, TURNS, make_item

from ssmctb_monai.visualize import load_heatmap, review, view_3d

ipyniivue = pytest.importorskip("ipyniivue")


def volumes(view):
    return [nib.Nifti1Image.from_bytes(volume.data) for volume in view.volumes]


@pytest.mark.parametrize("turn", [TURNS["RAS"], TURNS["LPS"], TURNS["ASR"], OBLIQUE["rotated"]])
def test_volumes_lie_where_the_scan_does(turn):
    item = make_item(turn)
    heatmap = load_heatmap(item)
    image, scores = volumes(view_3d(item))
    for volume in (image, scores):
        np.testing.assert_allclose(volume.affine, heatmap.affine, atol=1e-5)
        assert volume.get_data_dtype() == np.float32
        assert volume.header["sform_code"] > 0
    np.testing.assert_array_equal(scores.get_fdata(), heatmap.anomaly_map)
    np.testing.assert_array_equal(image.get_fdata()[heatmap.brain], heatmap.images["image"][heatmap.brain])


def scan(**changes):
    """A ramp of 1001 grey values and of as many scores in the brain, and an image of the skull around it."""
    ramp = np.pad(np.arange(1001.0)[:, None, None], 1, constant_values=5000)
    brain = np.pad(np.ones((1001, 1, 1)), 1)
    return {"image": ramp, "anomaly_map": ramp / 1000, "brain": brain, "modalities": ["t1"]} | changes


def test_what_is_shown():
    view = view_3d(scan(), height=333)
    assert isinstance(view, ipyniivue.NiiVue)
    assert view.height == 333
    assert view.opts.slice_type == ipyniivue.SliceType.RENDER
    assert view.opts.is_radiological_convention
    assert view.opts.is_orient_cube  # with the letters of the sides
    image, scores = view.volumes
    assert (image.name, scores.name) == ("t1.nii", "anomaly_map.nii")
    assert (image.cal_min, image.cal_max) == pytest.approx((5, 995))
    assert (scores.cal_min, scores.cal_max) == pytest.approx((0.99, 1))
    assert (image.colormap, scores.colormap) == ("gray", "warm")
    assert (image.opacity, scores.opacity) == (1, 0.7)
    shown = volumes(view)[0].get_fdata()
    assert shown.max() == 1000  # no skull
    assert shown[0, 0, 0] == 5


@pytest.mark.parametrize(
    ("of_the_item", "given", "limits"),
    [
        (0.25, None, (0.25, 1)),
        (0.25, 0.75, (0.75, 1)),
        (None, 0, (0, 1)),
        (None, np.float32(0.5), (0.5, 1)),
        (None, 3, (3, 3)),  # above all scores: nothing is shown, and the range is not turned round
    ],
)
def test_threshold(of_the_item, given, limits):
    scores = view_3d(scan(threshold=of_the_item), threshold=given).volumes[1]
    assert (scores.cal_min, scores.cal_max) == limits


def test_the_case_under_review(tmp_path):
    cases = [scan(case_id="P1"), scan(case_id="P2", modalities=["t2"], threshold=0.5)]
    reviewed = review(cases, review_file=tmp_path / "review.csv")
    view = view_3d(reviewed)
    assert view.volumes[0].name == "t1.nii"
    reviewed._handle_custom_msg({"type": "open", "case": 1}, [])
    assert [volume.name for volume in view.volumes] == ["t2.nii", "anomaly_map.nii"]
    assert view.volumes[1].cal_min == 0.5


def test_first_of_several_modalities():
    images = np.stack([scan()["image"] * factor for factor in (2, 1)])
    view = view_3d(scan(image=images, modalities=["flair", "t1"]))
    assert view.volumes[0].name == "flair.nii"
    assert len(view.volumes) == 2
    assert volumes(view)[0].get_fdata().max() == 2000


def test_wrong_items():
    with pytest.raises(KeyError, match="P1 lacks anomaly_map"):
        view_3d({"image": scan()["image"], "case_id": "P1"})
    with pytest.raises(TypeError, match="dictionary, such as `find_maps` returns, not list"):
        view_3d([scan()])
    with pytest.raises(ValueError, match="threshold must be a finite number, got nan"):
        view_3d(scan(), threshold=np.nan)


@pytest.mark.parametrize(
    ("function", "package"), [(review, "anywidget"), (review, "traitlets"), (view_3d, "ipyniivue")]
)
def test_a_missing_package_names_the_extra(monkeypatch, function, package):
    monkeypatch.delitem(sys.modules, "ssmctb_monai.visualize.widget", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}.*pip install "ssmctb_monai\[notebooks\]"') as caught:
        function(scan())
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
