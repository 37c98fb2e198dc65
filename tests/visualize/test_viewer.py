"""What the viewer in the browser is given: bytes that decode to the scores, and a header that says where they are."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import logging
import re
import time

import numpy as np
import pytest
from heatmap_cases import CENTRE, LESION, OBLIQUE, TURNS, make_item, rotation
from nibabel.affines import apply_affine

from ssmctb_monai.visualize import load_heatmap
from ssmctb_monai.visualize.viewer import COLORMAPS, ViewerScan, asset, colormaps, write_case

ALL_TURNS = [pytest.param(turn, id=name) for name, turn in (TURNS | OBLIQUE).items()]
HIGHEST = 65535


def decode(data, header, dtype):
    """Reads bytes as viewer.js does: x runs fastest."""
    array = np.frombuffer(data, dtype)
    x, y, z = np.indices(header["shape"])
    return array[x + header["shape"][0] * (y + header["shape"][1] * z)]


def scores_of(levels, header):
    low, high = header["range"]
    return low + (levels.astype(float) - 1) / (HIGHEST - 1) * (high - low)


def scan_of(image, scores, **more):
    return ViewerScan(load_heatmap({"image": image, "anomaly_map": scores} | more))


def in_a_box(values, shape=(20, 30, 40), corner=(6, 2, 10)):
    """Puts values into a volume of zeros."""
    volume = np.zeros(shape, dtype=np.float32)
    volume[tuple(slice(start, start + size) for start, size in zip(corner, values.shape, strict=True))] = values
    return volume


def boxed_scan(scores, image=None, **more):
    """Scan whose brain is a box of the scores' shape."""
    brain = in_a_box(np.ones(scores.shape))
    return scan_of(brain if image is None else in_a_box(image), in_a_box(scores), brain=brain, **more)


RAMP = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)


# ------------------------------------------------------------------------------------------------------------- volumes


def test_scores_by_hand():
    """Of a volume that runs right, front and up, brain and a margin of 4 voxels are shown, turned left, back, down."""
    scan = boxed_scan(RAMP / 10 - 7)
    header = scan.header()
    assert header["shape"] == [5 + 8, 6 + 4 + 2, 7 + 8]  # the box begins 2 voxels beside the second face
    levels = decode(scan.anomaly_map(), header, "<u2")
    assert len(scan.anomaly_map()) == 2 * levels.size
    inside = levels[4:9, 4:10, 4:11]
    assert (levels > 0).sum() == (inside > 0).sum() == 210
    assert (inside.min(), inside.max()) == (1, HIGHEST)
    np.testing.assert_array_equal(inside, 1 + np.rint(RAMP[::-1, ::-1, ::-1] / 209 * (HIGHEST - 1)))
    assert header["range"] == pytest.approx([-7, 13.9])


@pytest.mark.parametrize("turn", ALL_TURNS)
def test_volumes_and_header_agree_with_the_scan(turn):
    item = make_item(turn)
    item["image"], item["anomaly_map"] = (np.pad(item[key], 6) for key in ("image", "anomaly_map"))
    item["label"], item["affine"] = np.pad(item["label"], 6), item["affine"].copy()
    item["affine"][:3, 3] -= item["affine"][:3, :3] @ (6, 6, 6)
    scan = ViewerScan(load_heatmap(item))
    header = scan.header()
    assert np.prod(header["shape"]) < item["image"].size / 2
    levels, label = decode(scan.anomaly_map(), header, "<u2"), decode(scan.label(), header, np.uint8)
    step = (header["range"][1] - header["range"][0]) / (HIGHEST - 1)
    affine, to_scan = np.array(header["affine"]), np.array(header["scan_transform"])
    for voxel in np.argwhere(levels)[::5]:
        own = tuple(apply_affine(to_scan, voxel).astype(int))
        assert scores_of(levels[tuple(voxel)], header) == pytest.approx(item["anomaly_map"][own], abs=0.501 * step)
        assert label[tuple(voxel)] == item["label"][own]
        np.testing.assert_allclose(apply_affine(affine, voxel), apply_affine(item["affine"], own), atol=1e-9)
    assert label.sum() == item["label"].sum()

    assert levels[tuple(header["start"])] == HIGHEST
    assert np.linalg.norm(apply_affine(affine, header["start"]) - CENTRE - LESION) < 2
    scores = np.where(levels > 0, scores_of(levels, header), -np.inf)
    for index, score in zip(header["slices"]["index"], header["slices"]["score"], strict=True):
        shown = np.sort(scores[:, :, header["highest_slice"] - index], axis=None)[-20:]
        assert score == pytest.approx(shown.mean(), abs=step)
    with_lesion = np.array(header["slices"]["index"])[header["slices"]["lesion"]]
    assert set(header["highest_slice"] - with_lesion) <= set(np.flatnonzero(label.any(axis=(0, 1))))
    assert len(with_lesion) > 0


def test_slices_are_counted_from_the_feet():
    header = boxed_scan(RAMP).header()  # brain from slice 10 to 16 of 40
    assert header["highest_slice"] == 20
    assert header["slices"]["index"] == [10, 11, 12, 13, 14, 15, 16]
    assert header["start"] == [4, 4, 4]  # the box's rightmost, foremost and topmost voxel
    assert apply_affine(np.array(header["scan_transform"]), header["start"]).tolist() == [10, 7, 16]


def test_constant_map():
    scan = boxed_scan(np.full((5, 6, 7), 0.25))
    header = scan.header()
    assert (header["range"], header["limits"], header["threshold"]) == ([0.25, 0.25], [0.25, 0.25], 0.25)
    levels = decode(scan.anomaly_map(), header, "<u2")
    assert np.unique(levels).tolist() == [0, 1]
    assert header["total"] == 1
    json.dumps(header, allow_nan=False)


def test_brain_that_fills_the_volume():
    scan = scan_of(RAMP + 1, RAMP, brain=np.ones(RAMP.shape))
    assert scan.header()["shape"] == [5, 6, 7]
    assert decode(scan.anomaly_map(), scan.header(), "<u2").min() == 1


def test_label():
    label = np.zeros((5, 6, 7))
    label[0, 1, 2] = 4
    scan = boxed_scan(RAMP, label=in_a_box(label))
    shown = decode(scan.label(), scan.header(), np.uint8)
    assert np.argwhere(shown).tolist() == [[4 + 4, 4 + 4, 4 + 4]]
    assert shown.max() == 1
    assert scan.header()["slices"]["lesion"] == [False, False, True, False, False, False, False]
    assert boxed_scan(RAMP).label() is None


# -------------------------------------------------------------------------------------------------------------- header


@pytest.mark.parametrize("name", TURNS)
def test_directions_of_a_straight_scan(name):
    header = ViewerScan(load_heatmap(make_item(TURNS[name]))).header()
    assert header["directions"] == [["R", "L"], ["A", "P"], ["S", "I"]]


@pytest.mark.parametrize(
    ("turn", "directions"),
    [
        (rotation(2, 20), [["RA", "LP"], ["AL", "PR"], ["S", "I"]]),
        (rotation(2, -20), [["RP", "LA"], ["AR", "PL"], ["S", "I"]]),
        (rotation(0, 30), [["R", "L"], ["AS", "PI"], ["SP", "IA"]]),
        (rotation(1, 13), [["RI", "LS"], ["A", "P"], ["SR", "IL"]]),
        (rotation(1, 10), [["R", "L"], ["A", "P"], ["S", "I"]]),
        (rotation(1, 40) @ rotation(2, 25), [["RIA", "LSP"], ["ALS", "PRI"], ["SR", "IL"]]),
    ],
)
def test_directions_of_an_oblique_scan(turn, directions):
    assert ViewerScan(load_heatmap(make_item(turn))).header()["directions"] == directions


def test_spacing_follows_the_axes():
    header = ViewerScan(load_heatmap(make_item(TURNS["SRA"]))).header()  # 2, 3 and 1.5 mm
    assert header["spacing"] == pytest.approx([3, 1.5, 2])


def test_header_is_plain():
    item = make_item(OBLIQUE["rotated"], case_id="Ä 1", threshold=0.5)
    header = ViewerScan(load_heatmap(item)).header()
    assert json.loads(json.dumps(header, allow_nan=False)) == header
    assert header["case_id"] == "Ä 1"


def test_header_without_finite_slice_scores():
    heatmap = load_heatmap(make_item())
    scores = np.array(heatmap.slices["score"])
    scores[[0, -1]] = -np.inf, np.nan
    header = ViewerScan(dataclasses.replace(heatmap, slices={**heatmap.slices, "score": scores})).header()
    assert header["slices"]["score"] == [None, *scores[1:-1].tolist(), None]
    json.dumps(header, allow_nan=False)


def test_limits_leave_out_the_highest_and_the_lowest():
    scores = np.arange(1001.0)[:, None, None]
    volume = np.pad(scores, 1)
    header = scan_of(volume, volume, brain=np.pad(np.ones(scores.shape), 1)).header()
    assert header["range"] == [0, 1000]
    assert header["limits"] == pytest.approx([1, 999])


def test_brain_of_few_voxels():
    volume = np.zeros((6, 6, 6))
    volume[2, 3, 3] = 5
    header = scan_of(volume, volume).header()
    assert header["slices"] == {"index": [], "score": [], "lesion": []}
    assert (header["start"], header["total"]) == ([3, 2, 2], 0)
    json.dumps(header, allow_nan=False)


# -------------------------------------------------------------------------------------------- threshold and candidates


def test_default_threshold_is_exceeded_by_one_in_a_hundred():
    scores = np.arange(101.0)[:, None, None]
    scan = scan_of(*[np.pad(scores, 1)] * 2, brain=np.pad(np.ones(scores.shape), 1))
    assert scan.default_threshold == scan.header()["threshold"] == pytest.approx(99)
    assert type(scan.default_threshold) is float


@pytest.mark.parametrize("threshold", [0.0, -3.0, 1e9, 0.1])
def test_threshold_that_came_along(threshold):
    scan = boxed_scan(RAMP, threshold=threshold)
    assert scan.default_threshold == scan.header()["threshold"] == threshold
    assert scan.header(7.5)["threshold"] == 7.5
    assert scan.header(0)["total"] == 1
    assert scan.header(209.5)["total"] == 0


def blobs(count, size=10):
    """Lines of voxels that do not touch, the first with score 1, the second with 2, each highest at one end."""
    scores = np.zeros((2 * count, 1, size))
    scores[::2] = np.arange(1, count + 1)[:, None, None]
    scores[::2, 0, 0] += 0.5
    return scores


def test_candidates_by_hand():
    volume, affine = np.pad(blobs(3), 1), np.diag([2, 3, 4, 1])
    scan = scan_of(volume, volume, brain=np.ones(volume.shape), affine=affine)
    found = scan.candidates(1)
    assert (found["threshold"], found["total"]) == (1.0, 3)
    assert [entry["score"] for entry in found["candidates"]] == [3.5, 2.5, 1.5]
    assert [entry["volume"] for entry in found["candidates"]] == pytest.approx([0.24] * 3)
    assert [entry["scan_voxel"] for entry in found["candidates"]] == [[5, 1, 1], [3, 1, 1], [1, 1, 1]]
    assert [entry["voxel"] for entry in found["candidates"]] == [[2, 1, 10], [4, 1, 10], [6, 1, 10]]
    assert [entry["position"] for entry in found["candidates"]] == [[10, 3, 4], [6, 3, 4], [2, 3, 4]]
    assert scan.candidates(2)["total"] == 2
    assert scan.candidates(3.25)["total"] == 0  # a single voxel is none
    assert scan.candidates(1) == found


def test_candidates_are_in_the_cut_volume():
    scan = boxed_scan(blobs(2, size=12), threshold=0.5)
    header = scan.header()
    levels = decode(scan.anomaly_map(), header, "<u2")
    first, second = header["candidates"]
    assert first["voxel"] == header["start"]
    assert levels[tuple(first["voxel"])] == HIGHEST
    assert scores_of(levels[tuple(second["voxel"])], header) == pytest.approx(1.5, abs=1e-4)
    assert second["scan_voxel"] == [6, 2, 10]
    assert apply_affine(np.array(header["scan_transform"]), second["voxel"]).tolist() == [6, 2, 10]
    assert apply_affine(np.array(header["affine"]), second["voxel"]).tolist() == second["position"] == [6, 2, 10]


def test_the_highest_hundred_candidates_are_listed():
    volume = np.pad(blobs(104), 1)
    found = scan_of(volume, volume, brain=np.ones(volume.shape)).candidates(0.5)
    assert found["total"] == 104
    assert [entry["score"] for entry in found["candidates"]] == [104.5 - index for index in range(100)]


def test_candidates_outside_the_brain_do_not_count():
    scores = in_a_box(blobs(2))
    brain = in_a_box(np.ones((1, 1, 10)))
    found = scan_of(np.ones(scores.shape) - brain, scores, brain=brain).candidates(0.5)
    assert [entry["score"] for entry in found["candidates"]] == [1.5]


def test_entries_can_be_added_to():
    scan = boxed_scan(RAMP)
    scan.candidates(5)["candidates"][0]["verdict"] = "accept"
    assert "verdict" not in scan.candidates(5)["candidates"][0]


# -------------------------------------------------------------------------------------------------------------- layers


def grays(scan, layer):
    """Grey values in the box, in the scan's own order."""
    return decode(scan.layer(layer), scan.header(), np.uint8)[4:9, 4:10, 4:11][::-1, ::-1, ::-1]


def two_halves(first=100.0, second=200.0):
    return np.where(np.arange(7) < 4, first, second) * np.ones((5, 6, 7))


def test_image_by_hand():
    image = two_halves()
    image[2, 3, :2] = 150, -5  # lowest and highest half per cent of 210 voxels: one
    image[2, 3, 6] = 32767
    scan = boxed_scan(RAMP, image)
    shown = grays(scan, 0)
    assert (shown[0, 0, 0], shown[0, 0, 6]) == (0, 255)
    assert shown[2, 3].tolist() == [128, 0, 0, 0, 255, 255, 255]
    outside = decode(scan.layer(0), scan.header(), np.uint8)[:4]
    assert (outside == 0).all()
    assert len(scan.layer(0)) == np.prod(scan.header()["shape"])


def test_outliers_leave_the_contrast():
    image = 100 + RAMP
    image[0, 0, 0] = 32767
    shown = grays(boxed_scan(RAMP, image), 0)
    assert len(np.unique(shown)) > 190
    assert np.isin([0, 255], shown).all()


def test_layers_of_an_image_and_its_reconstruction():
    reconstruction = two_halves(150, 300)
    reconstruction[0, 0, :4] = 100, 75, 40, 175
    scan = boxed_scan(RAMP, two_halves(), reconstruction=in_a_box(reconstruction))
    assert scan.layers == scan.header()["layers"]
    assert scan.layers == ["image", "image, reconstruction", "image, image - reconstruction"]
    assert grays(scan, 0)[0, 0].tolist() == [0, 0, 0, 0, 255, 255, 255]
    assert grays(scan, 1)[1, 0].tolist() == [128, 128, 128, 128, 255, 255, 255]  # on the scale of the image
    assert grays(scan, 1)[0, 0].tolist() == [0, 0, 0, 191, 255, 255, 255]
    assert grays(scan, 2)[0, 0].tolist() == [128, 191, 255, 0, 0, 0, 0]  # 0, 25, 60, -75 and -100 of 100
    outside = decode(scan.layer(2), scan.header(), np.uint8)[:4]
    assert (outside == 128).all()


def test_layers_of_several_modalities():
    images = [two_halves(0, step) for step in (10, 20, 40)]
    images[1] = images[1][..., ::-1]
    scan = scan_of(
        np.stack([in_a_box(image) for image in images]),
        in_a_box(RAMP),
        brain=in_a_box(np.ones(RAMP.shape)),
        modalities=["flair", "t1", "t2"],
        reconstruction=np.stack([in_a_box(images[2] + 10), in_a_box(images[0])]),
        reconstruction_modalities=["t2", "flair"],
    )
    assert scan.layers == [
        *("flair", "t1", "t2", "t2, reconstruction", "flair, reconstruction"),
        *("t2, image - reconstruction", "flair, image - reconstruction"),
    ]
    assert [grays(scan, layer)[0, 0, 0] for layer in range(7)] == [0, 255, 0, 64, 0, 64, 128]
    assert [grays(scan, layer)[0, 0, 6] for layer in range(7)] == [255, 0, 255, 255, 255, 64, 128]


def test_constant_image():
    image = np.full((5, 6, 7), 7.0)
    scan = boxed_scan(RAMP, image, reconstruction=in_a_box(image))
    assert np.unique(grays(scan, 0)).tolist() == [0]
    assert np.unique(grays(scan, 2)).tolist() == [128]


# ---------------------------------------------------------------------------------------------------------- write_case


def read_case(file):
    """Reads the call and its two arguments as a browser would."""
    text = file.read_bytes().decode("ascii")
    match = re.fullmatch(r"heatmapCase\((\{.*\}), (\{[^{}]*\})\);\n", text)
    header, packed = json.loads(match[1]), json.loads(match[2])
    volumes = {name: data and gzip.decompress(base64.b64decode(data, validate=True)) for name, data in packed.items()}
    return header, volumes


def test_case_on_disk(tmp_path):
    image = np.stack([in_a_box(two_halves(0, step)) for step in (10, 20)])
    item = {"image": image, "anomaly_map": in_a_box(RAMP), "label": in_a_box(RAMP > 100), "case_id": "P1"}
    item |= {"modalities": ["flair", "t1"], "threshold": 150}
    write_case(item, tmp_path / "report" / "viewer")
    assert [file.name for file in (tmp_path / "report" / "viewer").iterdir()] == ["P1.js"]
    header, volumes = read_case(tmp_path / "report" / "viewer" / "P1.js")
    scan = ViewerScan(load_heatmap(item))
    assert header == scan.header() | {"layers": ["flair"]}
    assert header["threshold"] == 150
    assert volumes == {"map": scan.anomaly_map(), "image": scan.layer(0), "label": scan.label()}


def test_case_without_a_label_and_with_the_same_bytes_each_time(tmp_path, monkeypatch):
    item = {"image": in_a_box(RAMP), "anomaly_map": in_a_box(RAMP), "case_id": "P1"}
    write_case(item, tmp_path)
    first = (tmp_path / "P1.js").read_bytes()
    monkeypatch.setattr(time, "time", lambda: 12345)
    write_case(item, str(tmp_path))
    assert (tmp_path / "P1.js").read_bytes() == first
    assert read_case(tmp_path / "P1.js")[1]["label"] is None


@pytest.mark.parametrize("name", ["Ärzte\u2028 1", "50 % #2?&x", '"); alert(1); ("', "<script>", "P1.v2", "\\n", "{}"])
def test_odd_names(tmp_path, name):
    item = {"image": in_a_box(RAMP), "anomaly_map": in_a_box(RAMP), "case_id": name}
    write_case(item, tmp_path)
    assert read_case(tmp_path / f"{name}.js")[0]["case_id"] == name


def test_case_that_cannot_be_shown_is_left_out(tmp_path, caplog):
    item = {"image": in_a_box(RAMP), "anomaly_map": in_a_box(RAMP), "case_id": "P1"}
    write_case(item, tmp_path)
    write_case(item | {"case_id": "P2"}, tmp_path)
    scores = in_a_box(RAMP)
    scores[7, 5, 12] = np.inf
    with caplog.at_level(logging.WARNING, "ssmctb_monai.visualize.viewer"):
        write_case(item | {"anomaly_map": scores}, tmp_path)
        write_case(item | {"anomaly_map": scores, "case_id": "P3"}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["P2.js"]
    first, second = caplog.messages
    assert re.fullmatch(r"P1 is not in the viewer: .* infinite scores in the brain\.", first)
    assert second.startswith("P3 is not in the viewer: ")


# -------------------------------------------------------------------------------------------------- what lies beside it


def test_colormaps():
    found = colormaps()
    assert tuple(found) == COLORMAPS
    assert found["viridis"][:3] == [68, 1, 84]
    assert found["viridis"][-3:] == [253, 231, 36]
    for colors in found.values():
        assert len(colors) == 3 * 256
        luminance = np.reshape(colors, (256, 3)) @ (0.2126, 0.7152, 0.0722)
        assert (np.diff(luminance) > -0.5).all()
    json.dumps(found)


@pytest.mark.parametrize("name", ["viewer.js", "viewer.css", "review.js", "review.css", "page.js"])
def test_assets_are_in_the_package(name):
    assert len(asset(name)) > 100


def test_levels_are_those_of_the_browser():
    assert "const LEVELS = 65534;" in asset("viewer.js")
