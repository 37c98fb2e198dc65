"""What the viewer in the browser is given: bytes that decode to the scores, and a header that says where they are."""

from __future__ import annotations

import base64
import dataclasses
import errno
import gzip
import json
import logging
import re
import time
from pathlib import Path

import numpy as np
import pytest
from heatmap_cases import (
    CENTRE,
    LESION,
    OBLIQUE,
    TURNS,
    affine_of,
    brain_at,
    make_item,
    places,
    rotation,
)
from nibabel.affines import apply_affine

from ssmctb_monai.metrics import AnomalyEvaluation, EvaluationSettings
from ssmctb_monai.visualize import load_heatmap, viewer
from ssmctb_monai.visualize.heatmap import Heatmap
from ssmctb_monai.visualize.viewer import COLORMAPS, ViewerScan, asset, colormaps, write_case

SOME_TURNS = [pytest.param((TURNS | OBLIQUE)[name], id=name) for name in ("RAS", "ASR", "IRP", "rotated")]


def decode(data, header, dtype):
    """Reads bytes as viewer.js does: x runs fastest."""
    array = np.frombuffer(data, dtype)
    x, y, z = np.indices(header["shape"])
    return array[x + header["shape"][0] * (y + header["shape"][1] * z)]


def scores_of(scan):
    """Reads the map as viewer.js does: bits of half precision, scaled and shifted; NaN outside the brain."""
    header = scan.header()
    middle, span = header["scale"]
    return middle + span * decode(scan.anomaly_map(), header, "<f2").astype(float)


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
    halves = decode(scan.anomaly_map(), header, "<f2")
    assert len(scan.anomaly_map()) == 2 * halves.size
    inside = halves[4:9, 4:10, 4:11]
    assert np.isfinite(halves).sum() == np.isfinite(inside).sum() == 210
    assert header["limits"] == pytest.approx([-7 + 0.001 * 20.9, 13.9 - 0.001 * 20.9])
    middle, span = header["scale"]
    assert (middle, span) == pytest.approx((3.45, 0.998 * 20.9))
    expected = (RAMP[::-1, ::-1, ::-1] / 10 - 7 - 3.45) / (0.998 * 20.9)  # from -0.501 to 0.501
    np.testing.assert_allclose(inside, expected, atol=2**-11 / 2 + 1e-6)
    np.testing.assert_allclose(scores_of(scan)[4:9, 4:10, 4:11], RAMP[::-1, ::-1, ::-1] / 10 - 7, atol=2**-12 * span)


@pytest.mark.parametrize("turn", SOME_TURNS)
def test_volumes_and_header_agree_with_the_scan(turn):
    item = make_item(turn)
    item["image"], item["anomaly_map"] = (np.pad(item[key], 6) for key in ("image", "anomaly_map"))
    item["label"], item["affine"] = np.pad(item["label"], 6), item["affine"].copy()
    item["affine"][:3, 3] -= item["affine"][:3, :3] @ (6, 6, 6)
    scan = ViewerScan(load_heatmap(item))
    header = scan.header()
    assert np.prod(header["shape"]) < item["image"].size / 2
    scores, label = scores_of(scan), decode(scan.label(), header, np.uint8)
    step = 2**-12 * header["scale"][1]  # half of what half precision tells near the limits
    affine, to_scan = np.array(header["affine"]), np.array(header["scan_transform"])
    for voxel in np.argwhere(np.isfinite(scores))[::11]:
        own = tuple(apply_affine(to_scan, voxel).astype(int))
        assert scores[tuple(voxel)] == pytest.approx(item["anomaly_map"][own], abs=1.001 * step)
        assert label[tuple(voxel)] == item["label"][own]
        np.testing.assert_allclose(apply_affine(affine, voxel), apply_affine(item["affine"], own), atol=1e-9)
    assert label.sum() == item["label"].sum()

    assert np.isfinite(scores).sum() == scan.heatmap.brain.sum()
    assert scores[tuple(header["start"])] == np.nanmax(scores)
    assert np.linalg.norm(apply_affine(affine, header["start"]) - CENTRE - LESION) < 2
    scores = np.where(np.isnan(scores), -np.inf, scores)
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
    assert (header["scale"], header["limits"], header["threshold"]) == ([0.25, 1], [0.25, 0.25], 0.25)
    scores = scores_of(scan)
    assert np.unique(scores[np.isfinite(scores)]).tolist() == [0.25]
    assert np.isfinite(scores).sum() == 210
    assert header["total"] == 1
    json.dumps(header, allow_nan=False)


def test_brain_that_fills_the_volume():
    scan = scan_of(RAMP + 1, RAMP, brain=np.ones(RAMP.shape))
    assert scan.header()["shape"] == [5, 6, 7]
    assert np.isfinite(scores_of(scan)).all()


NOISE = np.random.default_rng(0).random((13, 12, 11))


def with_outlier(scores, value):
    scores = scores.copy()
    scores[6, 5, 4] = value
    return scores


@pytest.mark.parametrize(
    "scores",
    [
        NOISE,
        5000 + NOISE,
        -5000 + NOISE,
        1e-6 * NOISE,
        1e30 * NOISE,
        1e-30 * NOISE,
        NOISE**8,
        with_outlier(NOISE, 1e6),
        with_outlier(NOISE, -1e6),
        with_outlier(1e-6 * NOISE, 1),
        with_outlier(5000 + NOISE, 1e6),
        np.where(NOISE > 0.5, 1.0, 0),
        np.full(NOISE.shape, -3e-7),
        np.full(NOISE.shape, 1e6),
        np.zeros(NOISE.shape),
    ],
    ids=[
        *("noise", "offset", "negative", "tiny", "huge", "tiniest", "skew", "outlier", "low outlier"),
        *("tiny with outlier", "offset with outlier", "two values", "constant", "constant and large", "nothing"),
    ],
)
def test_scores_come_back_within_a_thousandth_of_the_limits(scores):
    brain = np.pad(np.ones(scores.shape), 1)
    scan = scan_of(brain, np.pad(scores, 1), brain=brain)
    header = scan.header()
    low, high = np.percentile(scores, [0.1, 99.9])
    assert header["limits"] == pytest.approx([low, high], rel=1e-6)
    width = max(high - low, np.ptp(scores) / 1000) or 1
    assert header["scale"] == pytest.approx([(low + high) / 2, width], rel=1e-3)
    json.dumps(header, allow_nan=False)
    found = scores_of(scan)[1:-1, 1:-1, 1:-1][::-1, ::-1, ::-1]
    middle, span = header["scale"][0], high - low or 1
    assert (abs(found - scores) <= 1e-3 * (span + abs(scores - middle))).all()
    near = abs(scores - middle) <= 2 * span
    assert near.sum() > 0.99 * scores.size
    assert abs(found - scores)[near].max() <= 1e-3 * span


def test_lesion_in_a_map_that_is_sure_of_itself():
    """Scores of a lesion may lie more than 65504 widths of the limits away, where half precision ends."""
    scores = 10.0 ** np.random.default_rng(0).uniform(-8, -6, (20, 20, 20))
    scores[3, 3, 2:6] = 0.9, 0.9, 0.1, 0.95
    scan = scan_of(np.ones(scores.shape), scores, brain=np.ones(scores.shape), threshold=0.5)
    assert scan.header()["limits"][1] < 1e-6
    found = scores_of(scan)
    assert np.sort(found, axis=None)[-4:] == pytest.approx([0.1, 0.9, 0.9, 0.95], rel=1e-3)
    assert scan.heatmap.scan_voxel(np.unravel_index(found.argmax(), found.shape)) == (3, 3, 5)


def test_few_voxels_of_a_lesion_in_an_empty_map():
    """Less than one in a thousand, so that the limits are equal."""
    scores = np.zeros((20, 20, 20))
    scores[3, 3, 2:4] = 1e-6, 2e-6
    scan = scan_of(np.ones(scores.shape), scores, brain=np.ones(scores.shape))
    assert scan.header()["limits"] == [0, 0]
    found = scores_of(scan)
    assert np.sort(found[found > 0]) == pytest.approx([1e-6, 2e-6], rel=1e-3)


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


@pytest.mark.parametrize("name", ["RAS", "LPS", "IRP"])
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
    assert header["limits"] == pytest.approx([1, 999])
    assert header["scale"] == pytest.approx([500, 998])
    assert "range" not in header


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


@pytest.mark.parametrize(("low", "high", "threshold"), [(0, 0.7, 0.7), (0.25, 0.3, 0.3), (0.5, 0.5, 0.5)])
def test_default_threshold_of_a_sparse_map(low, high, threshold):
    """The score that one in a hundred voxels exceeds is that of all others."""
    scores = np.full((20, 20, 20), low, np.float32)
    scores[3, 3, 2:4] = high, max(high, 0.4)
    scan = scan_of(np.ones(scores.shape), scores, brain=np.ones(scores.shape))
    assert scan.default_threshold == pytest.approx(threshold)


@pytest.mark.parametrize("threshold", [0.0, -3.0, 1e9, 0.1])
def test_threshold_that_came_along(threshold):
    scan = boxed_scan(RAMP, threshold=threshold)
    assert scan.default_threshold == scan.header()["threshold"] == threshold
    assert scan.header()["total"] == (threshold < 200)
    assert scan.header()["threshold_given"] is True
    assert boxed_scan(RAMP).header()["threshold_given"] is False
    assert scan.candidates(7.5)["threshold"] == 7.5
    assert scan.candidates(0)["total"] == 1
    assert scan.candidates(209.5)["total"] == 0


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
    scores = scores_of(scan)
    first, second = header["candidates"]
    assert first["voxel"] == header["start"]
    assert scores[tuple(first["voxel"])] == np.nanmax(scores)
    assert scores[tuple(second["voxel"])] == pytest.approx(1.5, abs=1e-3)
    assert second["scan_voxel"] == [6, 2, 10]
    assert apply_affine(np.array(header["scan_transform"]), second["voxel"]).tolist() == [6, 2, 10]
    assert apply_affine(np.array(header["affine"]), second["voxel"]).tolist() == second["position"] == [6, 2, 10]


@pytest.mark.parametrize(("size", "total"), [(1, 3), (2, 2), (4, 1), (5, 0)])
def test_candidates_have_the_size_of_the_settings(size, total):
    scores = np.zeros((5, 4, 1))
    for line, length in enumerate([1, 2, 4]):
        scores[2 * line, :length] = 1
    volume = np.pad(scores, 1)
    item = {"image": volume, "anomaly_map": volume, "brain": np.ones(volume.shape), "threshold": 1}
    scan = ViewerScan(load_heatmap(item, EvaluationSettings(min_lesion_size=size)))
    header = scan.header()
    assert (header["min_size"], header["total"], scan.candidates(0.5)["total"]) == (size, total, total)
    assert boxed_scan(RAMP).header()["min_size"] == 10


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
    """Grey values in the box as viewer.js draws them, in the scan's own order."""
    values = decode(scan.layer(layer), scan.header(), "<f2")[4:9, 4:10, 4:11][::-1, ::-1, ::-1]
    return np.rint(255 * np.clip(values.astype(float), 0, 1)).astype(int)


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
    header = scan.header()
    assert header["windows"] == [[100, 100]]
    values = decode(scan.layer(0), header, "<f2")
    assert (values[:4] == -1).all()  # outside, 0 as an intensity
    assert values.max() == pytest.approx((32767 - 100) / 100, rel=1e-3)  # for another window
    assert len(scan.layer(0)) == 2 * np.prod(header["shape"])


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
    assert scan.header()["windows"] == [[100, 100], [100, 100], [-50, 100]]
    assert (decode(scan.layer(2), scan.header(), "<f2")[:4] == 0.5).all()


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


@pytest.mark.parametrize("turn", SOME_TURNS)
def test_masks_come_back_as_the_scan_lies(turn):
    item = make_item(turn)
    scan = ViewerScan(load_heatmap(item))
    flagged = scan.flagged(0.5)
    mask = scan.scan_mask(flagged)
    expected = (item["anomaly_map"] >= 0.5) & scan.heatmap.to_scan(scan.heatmap.brain)
    assert expected.sum() > 20
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_allclose(scan.heatmap.scan_affine, item["affine"], atol=1e-9)
    assert scan.mask(mask) == flagged


def test_masks_of_another_case_are_refused():
    scan = boxed_scan(RAMP)
    size = int(np.prod(scan.header()["shape"]))
    for content in (bytes(size - 1), bytes([2] * size)):
        with pytest.raises(ValueError, match=f"{size} voxels of 0 or 1: open the case again"):
            scan.scan_mask(content)


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
    assert "<" not in text  # it may stand in a page
    assert json.loads(viewer.read_case(file)) == [header, packed]
    volumes = {name: data and gzip.decompress(base64.b64decode(data, validate=True)) for name, data in packed.items()}
    return header, volumes


def test_case_on_disk(tmp_path):
    image = np.stack([in_a_box(two_halves(0, step)) for step in (10, 20)])
    item = {"image": image, "anomaly_map": in_a_box(RAMP), "label": in_a_box(RAMP > 100), "case_id": "P1"}
    item |= {"modalities": ["flair", "t1"], "threshold": 150}
    assert write_case(item, tmp_path / "report" / "viewer") is True
    assert [file.name for file in (tmp_path / "report" / "viewer").iterdir()] == ["P1.js"]
    header, volumes = read_case(tmp_path / "report" / "viewer" / "P1.js")
    scan = ViewerScan(load_heatmap(item))
    assert header == scan.header() | {"layers": ["flair"], "windows": [[0, 10]]}
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
    assert write_case(item, tmp_path)
    assert read_case(tmp_path / f"{name}.js")[0]["case_id"] == name


def test_case_that_cannot_be_shown_is_left_out(tmp_path, caplog):
    item = {"image": in_a_box(RAMP), "anomaly_map": in_a_box(RAMP), "case_id": "P1"}
    write_case(item, tmp_path)
    write_case(item | {"case_id": "P2"}, tmp_path)
    scores = in_a_box(RAMP)
    scores[7, 5, 12] = np.inf
    with caplog.at_level(logging.WARNING, "ssmctb_monai.visualize.viewer"):
        assert write_case(item | {"anomaly_map": scores}, tmp_path) is False
        assert write_case(item | {"anomaly_map": scores, "case_id": "P3"}, tmp_path) is False
    assert [file.name for file in tmp_path.iterdir()] == ["P2.js"]
    first, second = caplog.messages
    assert re.fullmatch(r"P1 is not in the viewer: .* infinite scores in the brain\.", first)
    assert second.startswith("P3 is not in the viewer: ")


def test_heatmap_of_an_evaluated_case(tmp_path):
    """Not loaded nor scored again, the case is as from files."""
    item = make_item(OBLIQUE["rotated"], brain=brain_at(places(affine_of(OBLIQUE["rotated"]))))
    evaluation = AnomalyEvaluation({"model": 0.3, "other": 2.0})
    maps = {"model": item["anomaly_map"], "other": -item["anomaly_map"]}
    case = evaluation.add("P1", maps, item["label"], item["brain"], affine=item["affine"], image=item["image"])
    heatmap = Heatmap.of(case, evaluation.statistics["model"][0].slices, evaluation.settings, 0.3)
    assert write_case(heatmap, tmp_path / "evaluated")
    assert write_case(item | {"case_id": "P1", "threshold": 0.3}, tmp_path / "loaded")
    evaluated, loaded = (read_case(tmp_path / name / "P1.js") for name in ("evaluated", "loaded"))
    assert evaluated == loaded


def test_maps_of_other_methods_lie_beside(tmp_path):
    item = make_item()
    evaluation = AnomalyEvaluation({"model": 0.3, "other": 2.0})
    maps = {"model": item["anomaly_map"], "other": 3 * item["anomaly_map"]}
    case = evaluation.add("P1", maps, item["label"], affine=item["affine"], image=item["image"])
    slices = evaluation.statistics["other"][0].slices
    other = Heatmap.of(case, slices, evaluation.settings, 2.0, method="other")
    assert write_case(Heatmap.of(case, slices, evaluation.settings, 0.3), tmp_path, beside={"<b>": other})
    text = (tmp_path / "P1.js").read_text("ascii")
    assert "<" not in text
    header, _, others = json.loads(viewer.read_case(tmp_path / "P1.js"))
    own, packed = others["<b>"]
    assert (header["threshold"], own["threshold"], own["shape"]) == (0.3, 2.0, header["shape"])
    assert packed.keys() == {"map"}
    assert gzip.decompress(base64.b64decode(packed["map"])) == ViewerScan(other).anomaly_map()


def test_infinite_scores_of_an_evaluated_case(tmp_path, caplog):
    item = make_item()
    evaluation = AnomalyEvaluation(settings=EvaluationSettings(slice_score="max"))
    scores = np.where(item["label"] > 0, np.float32(np.inf), item["anomaly_map"])
    case = evaluation.add("P1", {"model": scores}, item["label"], affine=item["affine"], image=item["image"])
    heatmap = Heatmap.of(case, evaluation.statistics["model"][0].slices, evaluation.settings)
    assert write_case(heatmap, tmp_path) is False
    assert caplog.messages == ["P1 is not in the viewer: its map holds infinite scores in the brain"]


def test_settings_of_the_evaluation(tmp_path):
    item = {"image": in_a_box(RAMP + 1), "anomaly_map": in_a_box(RAMP), "case_id": "P1", "threshold": 205}
    settings = EvaluationSettings(slice_score="max", min_lesion_size=1)
    assert write_case(item, tmp_path, settings)
    header, _ = read_case(tmp_path / "P1.js")
    assert header == ViewerScan(load_heatmap(item, settings)).header()
    assert (header["min_size"], header["total"]) == (1, 1)  # the last 5 of the last line
    assert header["slices"]["score"] == [203, 204, 205, 206, 207, 208, 209]
    assert write_case(item, tmp_path)
    header, _ = read_case(tmp_path / "P1.js")
    assert (header["min_size"], header["total"]) == (10, 0)
    assert header["slices"]["score"][-1] == pytest.approx(np.sort(RAMP[..., 6], axis=None)[-20:].mean())


@pytest.mark.parametrize("name", ["../x", "a/b", "../viewer/../x", "sub/../../x", "absolute"])
def test_names_that_leave_the_folder(tmp_path, caplog, name):
    """Nothing outside is written, and nothing is removed."""
    folder = tmp_path / "report" / "viewer"
    for file in (tmp_path / "report" / "x.js", folder / "a" / "b.js", tmp_path / "absolute.js", folder / "P1.js"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("somebody's")
    before = sorted(tmp_path.rglob("*"))
    item = {"image": in_a_box(RAMP), "anomaly_map": in_a_box(RAMP)}
    item["case_id"] = str(tmp_path / name) if name == "absolute" else name
    with caplog.at_level(logging.WARNING, "ssmctb_monai.visualize.viewer"):
        assert write_case(item, folder) is False
    (message,) = caplog.messages
    assert message.startswith(f"{item['case_id']} is not in the viewer: ")
    assert sorted(tmp_path.rglob("*")) == before
    assert {path.read_text() for path in before if path.is_file()} == {"somebody's"}


@pytest.mark.parametrize("name", ["P1\0", "P" * 300, "\ud83e"])
def test_names_that_no_file_can_have(tmp_path, monkeypatch, name):
    warnings = []  # caplog's go into pytest-xdist's report, which cannot hold half a sign
    monkeypatch.setattr(logging.getLogger("ssmctb_monai.visualize.viewer"), "warning", lambda *a: warnings.append(a))
    item = {"image": in_a_box(RAMP), "anomaly_map": in_a_box(RAMP), "case_id": name}
    assert write_case(item, tmp_path) is False
    assert len(warnings) == 1
    assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path, caplog, monkeypatch):
    item = {"image": in_a_box(RAMP), "anomaly_map": in_a_box(RAMP), "case_id": "P1"}
    assert write_case(item, tmp_path)
    write = Path.write_text

    def write_half(path, text, **options):
        write(path, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "ssmctb_monai.visualize.viewer"):
        patch.setattr(Path, "write_text", write_half)
        assert write_case(item, tmp_path) is False
    (message,) = caplog.messages
    assert re.match(r"P1 is not in the viewer: .*No space left on device", message)
    assert not list(tmp_path.iterdir())  # neither that of the earlier run nor half of a new one
    assert write_case(item, tmp_path)


def test_folder_that_is_a_file(tmp_path, caplog):
    (tmp_path / "viewer").write_text("a file")
    item = {"image": in_a_box(RAMP), "anomaly_map": in_a_box(RAMP), "case_id": "P1"}
    with caplog.at_level(logging.WARNING, "ssmctb_monai.visualize.viewer"):
        assert write_case(item, tmp_path / "viewer") is False
    assert len(caplog.messages) == 1
    assert (tmp_path / "viewer").read_text() == "a file"


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


def test_browser_reads_what_is_sent():
    assert "scan.scale[0] + scan.scale[1] * HALVES[bits]" in asset("viewer.js")
    for file in ("review.js", "page.js"):
        assert re.search(r"\bUint16Array\b", asset(file))
