"""Synthetic anomalies."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose
from scipy.ndimage import binary_dilation
from skimage.io import imsave

from ssmctb_monai.transforms import RandPerlinAnomaly, RandPerlinAnomalyd

SIZES = {2: (31, 26), 3: (17, 14, 15)}
SOURCES = ["intensity", "paste", "texture", "folder"]
CASES = [(2, source) for source in SOURCES] + [(3, source) for source in SOURCES[:3]]
WHOLE = {"prob": 1.0, "coverage": (1.0, 1.0), "opacity": (1.0, 1.0), "edge": 0.0}  # the source itself, everywhere


@pytest.fixture(scope="session")
def textures(tmp_path_factory):
    """Images in grey and colour, larger and smaller than the samples, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("textures")
    rng = np.random.default_rng(0)
    save(folder / "grey.png", rng.integers(0, 256, (40, 50), dtype=np.uint8))
    save(folder / "colour.PNG", rng.integers(0, 256, (9, 60, 3), dtype=np.uint8))
    (folder / "banded").mkdir()
    save(folder / "banded" / "small.png", rng.integers(0, 256, (5, 4), dtype=np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


def save(path, array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imsave(path, array, check_contrast=False)


def anomaly(spatial_dims, seed=0, folder=None, **arguments):
    if "folder" in arguments.get("sources", ()):
        arguments["texture_folder"] = folder
    return RandPerlinAnomaly(spatial_dims, **{"prob": 1.0, **arguments}).set_random_state(seed)


def images(spatial_dims, batch=4, channels=2, seed=0):
    """Batch of images in [0, 1] and of brains, each another."""
    generator = torch.Generator().manual_seed(seed)
    size = SIZES[spatial_dims]
    image = torch.rand(batch, channels, *size, generator=generator)
    brain = torch.zeros(batch, 1, *size, dtype=torch.uint8)
    for index in range(batch):
        brain[(index, 0, *[slice(2 + index % 3, -3)] * spatial_dims)] = 1
    return image, brain


def source_image(image, kind, seed=0, folder=None, **arguments):
    """What a source puts in the place of a sample."""
    return anomaly(image.dim() - 1, seed, folder, **{**WHOLE, "sources": [kind], **arguments})(image)[0]


# --------------------------------------------------------------------------------------------------- any kind of source


@pytest.mark.parametrize(("spatial_dims", "source"), CASES)
def test_what_every_source_keeps(spatial_dims, source, textures):
    batch, brain = images(spatial_dims, batch=8)
    kept = batch.clone()
    low, high = 0.05, 0.3
    transform = anomaly(spatial_dims, folder=textures, sources=[source], coverage=(low, high))
    corrupted, clean, mask = transform(batch, brain)
    assert torch.equal(batch, kept)  # not modified in place
    assert torch.equal(clean, kept)
    assert corrupted.shape == batch.shape
    assert mask.shape == brain.shape
    assert corrupted.dtype == clean.dtype == mask.dtype == torch.float32
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask[brain == 0] == 0).all()
    outside = (brain == 0).expand_as(batch)
    assert torch.equal(corrupted[outside], clean[outside])
    for sample, inside, noisy, original in zip(mask, brain, corrupted, clean, strict=True):
        share = float(sample.sum() / inside.sum())
        assert low - 1e-3 <= share <= high + 1e-3
        assert (noisy != original)[:, sample[0] > 0].float().mean() > 0.9  # the mask marks what was changed


@pytest.mark.parametrize(("spatial_dims", "source"), CASES)
def test_batch_and_sample(spatial_dims, source, textures):
    batch, brain = images(spatial_dims)
    results = anomaly(spatial_dims, 3, textures, sources=[source])(batch, brain)
    assert [result.shape[0] for result in results] == [4, 4, 4]
    transform = anomaly(spatial_dims, 3, textures, sources=[source])
    for index in range(4):
        sample = transform(batch[index], brain[index])
        assert [part.shape for part in sample] == [result[index].shape for result in results]
        if source != "paste":  # which draws another sample of the batch, if there is one
            for part, result in zip(sample, results, strict=True):
                torch.testing.assert_close(part, result[index])


@pytest.mark.parametrize(("spatial_dims", "source"), CASES)
def test_nothing_changes_beyond_the_edge(spatial_dims, source, textures):
    image, brain = images(spatial_dims, batch=1)
    for seed in range(5):
        transform = anomaly(spatial_dims, seed, textures, sources=[source], edge=0.0)
        corrupted, clean, mask = (part[0] for part in transform(image, brain))
        changed = (corrupted != clean).any(dim=0).numpy()
        assert mask.any()
        assert not changed[~binary_dilation(mask[0].numpy() > 0)].any()


def test_soft_edge_is_less_than_half_outside_the_mask_and_more_inside():
    image = torch.full((1, 40, 40), 0.5)
    sharp = anomaly(2, sources=["texture"], opacity=(1.0, 1.0), edge=0.0)(image)
    soft = anomaly(2, sources=["texture"], opacity=(1.0, 1.0), edge=3.0)(image)
    assert torch.equal(sharp[2], soft[2])
    source = sharp[0] - 0.5
    share = torch.where(source.abs() > 0.02, (soft[0] - 0.5) / source, torch.nan)
    inside = share[(sharp[2] > 0) & share.isfinite()]
    assert 0.5 <= inside.min() < 0.8
    assert inside.max() <= 1 + 1e-5
    outside = (soft[0] != 0.5) & (soft[2] == 0)
    assert outside.sum() > (sharp[0] != 0.5)[sharp[2] == 0].sum()
    assert (soft[0] - 0.5).abs()[outside].max() <= 0.25 + 1e-6  # half of the largest possible difference


def test_edge_is_soft():
    """Along a line into the anomaly the change grows step by step."""
    image = torch.zeros(1, 64, 64)
    white = anomaly(2, 1, sources=["intensity"], offset=(1.0, 1.0), edge=2.0, cells=(2, 2), coverage=(0.1, 0.1))
    steps = [white(image)[0].diff(dim=-1).abs().max() for _ in range(10)]
    sharp = anomaly(2, 1, sources=["intensity"], offset=(1.0, 1.0), edge=0.0, cells=(2, 2), coverage=(0.1, 0.1))
    sharp_steps = [sharp(image)[0].diff(dim=-1).abs().max() for _ in range(10)]
    assert np.median(steps) < 0.6 * np.median(sharp_steps)


@pytest.mark.parametrize("coverage", [(0.01, 0.02), (0.2, 0.2), (0.5, 0.9)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_coverage_is_a_share_of_the_brain(spatial_dims, coverage):
    image, brain = images(spatial_dims, batch=20)
    _, _, mask = anomaly(spatial_dims, coverage=coverage)(image, brain)
    shares = mask.flatten(1).sum(1) / brain.flatten(1).sum(1)
    rounding = 1 / float(brain[0].sum())
    assert coverage[0] - rounding <= shares.min() <= shares.max() <= coverage[1] + rounding
    if coverage[0] < coverage[1]:
        assert shares.std() > 0.1 * (coverage[1] - coverage[0])


def test_coverage_is_drawn_log_uniformly():
    _, _, mask = anomaly(2, coverage=(0.01, 0.64))(torch.rand(200, 1, 24, 24))
    assert 0.4 < (mask.mean(dim=(1, 2, 3)) < 0.08).float().mean() < 0.6  # 0.08 is the middle of 0.01 and 0.64


@pytest.mark.parametrize("voxels", [1, 3, 20])
def test_no_mask_of_an_anomaly_is_empty(voxels):
    """What is changed is marked, in the slices with the least brain too."""
    image = torch.full((30, 1, 16, 16), 0.5)
    brain = torch.zeros(30, 1, 256)
    brain[..., :voxels] = 1
    corrupted, clean, mask = anomaly(2)(image, brain.reshape(30, 1, 16, 16))
    changed = (corrupted != clean).flatten(1).any(1)
    marked = mask.flatten(1).any(1)
    assert torch.equal(changed, marked)
    assert marked.all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_without_a_brain_the_whole_image_counts(spatial_dims):
    image, _ = images(spatial_dims, batch=1)
    transform = anomaly(spatial_dims, coverage=(0.5, 0.5))
    corrupted, _, mask = transform(image[0])
    assert float(mask.mean()) == pytest.approx(0.5, abs=1e-3)
    expected = anomaly(spatial_dims, coverage=(0.5, 0.5))(image[0], torch.ones_like(image[0, :1]))
    assert torch.equal(corrupted, expected[0])


@pytest.mark.parametrize("batched", [False, True])
def test_empty_brain_stays_clean(batched):
    image = torch.rand(*([2] * batched), 1, 16, 16)
    corrupted, clean, mask = anomaly(2)(image, torch.zeros_like(image))
    assert torch.equal(corrupted, image)
    assert torch.equal(clean, image)
    assert not mask.any()


@pytest.mark.parametrize("prob", [0.0, 0.3, 0.5, 1.0])
def test_share_of_clean_samples(prob):
    image = torch.full((400, 1, 8, 8), 0.5)
    corrupted, clean, mask = anomaly(2, prob=prob)(image)
    marked = mask.flatten(1).any(1)
    assert torch.equal(marked, (corrupted != clean).flatten(1).any(1))
    assert float(marked.float().mean()) == pytest.approx(prob, abs=0.07 * (0 < prob < 1))


def test_half_of_the_samples_stay_clean_by_default():
    _, _, mask = RandPerlinAnomaly(2).set_random_state(0)(torch.rand(300, 1, 8, 8))
    assert 0.42 < mask.flatten(1).any(1).float().mean() < 0.58


@pytest.mark.parametrize("prob", [0.0, 1.0])
@pytest.mark.parametrize("batched", [False, True])
def test_results_share_no_memory(prob, batched):
    image = torch.rand(*([2] * batched), 1, 16, 16)
    kept = image.clone()
    corrupted, clean, _ = anomaly(2, prob=prob)(image)
    corrupted.zero_()
    assert torch.equal(image, kept)
    assert torch.equal(clean, kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_type_of_the_image_is_kept(dtype):
    image = torch.rand(2, 1, 16, 16).to(dtype)
    corrupted, clean, mask = anomaly(2, sources=SOURCES[:3])(image)
    assert (corrupted.dtype, clean.dtype, mask.dtype) == (dtype, dtype, torch.float32)
    assert (corrupted != clean).any()


@pytest.mark.parametrize(("spatial_dims", "source"), [(2, "folder"), (3, "intensity")])
def test_autocast_changes_nothing(spatial_dims, source, textures):
    batch, brain = images(spatial_dims)
    expected = anomaly(spatial_dims, 2, textures, sources=[source])(batch, brain)
    with torch.autocast("cpu", torch.bfloat16):
        result = anomaly(spatial_dims, 2, textures, sources=[source])(batch, brain)
    torch.testing.assert_close(result, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("spatial_dims", "source"), CASES)
def test_same_anomalies_on_the_gpu(spatial_dims, source, textures):
    batch, brain = images(spatial_dims)
    expected = anomaly(spatial_dims, 2, textures, sources=[source])(batch, brain)
    result = anomaly(spatial_dims, 2, textures, sources=[source])(batch.cuda(), brain.cuda())
    assert all(part.is_cuda for part in result)
    assert (result[2].cpu() != expected[2]).float().mean() < 1e-3  # voxels on the threshold
    assert ((result[0].cpu() - expected[0]).abs() > 1e-3).float().mean() < 1e-3


# -------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_intensity_offsets_lie_in_range_up_and_down(spatial_dims):
    image = torch.full((2, *SIZES[spatial_dims]), 0.5)
    offsets, roughness = [], []
    for seed in range(20):
        change = source_image(image, "intensity", seed, offset=(0.05, 0.15)) - 0.5
        offsets.append(change.flatten(1).mean(1))  # the texture's mean is 0
        roughness.append(float(change[0].std() / change[0].mean().abs()))
    offsets = torch.stack(offsets)
    assert 0.048 < offsets.abs().min() < 0.07
    assert 0.13 < offsets.abs().max() < 0.151
    for channel in offsets.T:
        assert (channel < 0).any()
        assert (channel > 0).any()
    assert (offsets[:, 0] - offsets[:, 1]).abs().min() > 1e-4  # drawn per channel
    assert (offsets[:, 0] * offsets[:, 1] < 0).any()
    assert max(roughness) > 0.3  # a texture of its own, of up to half of the offset
    assert max(roughness) < 0.55
    assert min(roughness) < 0.1


@pytest.mark.parametrize(("brighter", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_share_of_offsets_upwards(brighter, share):
    image = torch.full((40, 8, 8), 0.5)  # 40 channels, each with an offset of its own
    changes = [source_image(image, "intensity", seed, brighter=brighter) - 0.5 for seed in range(10)]
    upwards = torch.stack(changes).flatten(2).mean(2) > 0
    assert upwards.float().mean() == pytest.approx(share, abs=0.07)  # three standard deviations of 400 draws


def test_texture_of_the_offset_is_of_low_frequency():
    image = torch.full((1, 64, 64), 0.5)
    for seed in range(10):
        change = source_image(image, "intensity", seed, offset=(0.1, 0.1), cells=(1, 4))[0]
        assert change.diff(dim=0).std() < 0.6 * change.std()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_paste_comes_from_another_place_of_a_single_sample(spatial_dims):
    size = SIZES[spatial_dims]
    places = torch.stack(torch.meshgrid(*[torch.arange(n) for n in size], indexing="ij")).float()
    scale = torch.tensor(size).reshape(-1, *[1] * spatial_dims)
    for seed in range(10):
        pasted = (source_image(places / scale, "paste", seed) * scale).round()
        changed = pasted != places  # one voxel lies on the threshold and keeps its own value
        assert changed.any(dim=0).float().mean() > 0.97
        came_from = pasted.flatten(1).unique(dim=1)
        assert came_from.shape[1] >= places[0].numel() - 1  # the image as a whole, only moved


def test_paste_keeps_channels_together():
    image, _ = images(2, batch=1)
    image = torch.cat([image[0, :1], 1 - image[0, :1]])
    pasted = source_image(image, "paste")
    torch.testing.assert_close(pasted[0], 1 - pasted[1])


def test_paste_comes_from_another_sample_of_a_batch():
    batch = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 24, 24) / 4
    donors = set()
    for seed in range(40):
        corrupted, _, mask = anomaly(2, seed, sources=["paste"], opacity=(1.0, 1.0), edge=0.0)(batch)
        for index in range(4):
            values = corrupted[index][mask[index] > 0]
            donor = float(values.median())
            assert donor != batch[index, 0, 0, 0]
            donors.add((index, round(4 * donor)))
    assert donors == {(i, j) for i in range(4) for j in range(4) if i != j}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_texture_is_noise_over_the_whole_range(spatial_dims):
    image = torch.full((2, *SIZES[spatial_dims]), 0.5)
    texture = source_image(image, "texture")
    for channel in texture:
        assert channel.min() < 0.01
        assert channel.max() > 0.99
        assert 0.1 < channel.std() < 0.4
    assert (texture[0] != texture[1]).float().mean() > 0.9  # drawn per channel
    assert not torch.equal(texture, source_image(image, "texture", seed=1))


def test_folder_takes_crops_of_its_images(tmp_path):
    ramp = np.arange(60 * 70, dtype=np.float64).reshape(60, 70) / (60 * 70)
    grey = np.round(255 * ramp).astype(np.uint8)
    grey[-1, -1] = 255
    save(tmp_path / "ramp.png", grey)
    image = torch.zeros(2, 20, 24)
    corners = set()
    for seed in range(10):
        texture = source_image(image, "folder", seed, tmp_path) * 255
        assert torch.equal(texture[0], texture[1])  # the same in all channels
        rows = (texture[0, 1:19, :] - texture[0, :18, :]).mean()
        assert float(rows) == pytest.approx(255 / 60, rel=0.05)  # at its own scale, neither turned nor stretched
        corners.add(round(float(texture[0, 1, 1]) * 10))
    assert len(corners) > 5


def test_folder_draws_among_its_images(textures):
    assert len(anomaly(2, folder=textures, sources=["folder"]).texture_files) == 3
    image = torch.zeros(1, 12, 12)
    results = [source_image(image, "folder", seed, textures) for seed in range(12)]
    assert len({round(float(result.std()), 2) for result in results}) > 2


def test_small_image_of_the_folder_is_enlarged(tmp_path):
    save(tmp_path / "small.png", np.array([[0, 255]], dtype=np.uint8).repeat(2, 0))
    texture = source_image(torch.zeros(1, 30, 20), "folder", folder=tmp_path)
    assert texture.shape == (1, 30, 20)
    assert texture.std() > 0.01


@pytest.mark.parametrize("value", [20, 51, 204])
@pytest.mark.parametrize("kind", ["grey", "colour", "alpha", "16 bit"])
def test_grey_value_of_the_folder_is_that_of_the_file(tmp_path, kind, value):
    arrays = {
        "grey": np.full((40, 40), value, np.uint8),
        "colour": np.full((40, 40, 3), value, np.uint8),
        "alpha": np.dstack([np.full((40, 40, 3), value, np.uint8), np.full((40, 40, 1), 255, np.uint8)]),
        "16 bit": np.full((40, 40), value * 257, np.uint16),
    }
    save(tmp_path / "flat.png", arrays[kind])
    corrupted, _, mask = anomaly(2, folder=tmp_path, sources=["folder"], opacity=(1.0, 1.0), edge=0.0)(
        torch.full((1, 24, 24), 0.5)
    )
    assert float(corrupted[mask > 0].median()) == pytest.approx(value / 255, abs=2e-3)


def test_opacity_mixes_the_source_with_the_image():
    image, _ = images(2, batch=1)
    full = source_image(image[0], "texture")
    half = source_image(image[0], "texture", opacity=(0.5, 0.5))
    torch.testing.assert_close(half - image[0], 0.5 * (full - image[0]))
    shares = [
        float(((source_image(image[0], "texture", seed, opacity=(0.2, 0.6)) - image[0]) / (full_ - image[0])).median())
        for seed in range(20)
        for full_ in [source_image(image[0], "texture", seed)]
    ]
    assert 0.2 <= min(shares) < 0.3
    assert 0.5 < max(shares) <= 0.6


def test_sources_are_drawn_per_image():
    batch = torch.full((60, 1, 16, 16), 0.5)
    batch[::2] = 0.25
    offset = {"offset": (0.01, 0.01)}
    corrupted, clean, mask = anomaly(2, sources=["intensity", "texture"], **offset, opacity=(1.0, 1.0))(batch)
    change = ((corrupted - clean).abs() * mask).flatten(1).amax(1)
    assert 15 < (change > 0.06).sum() < 45  # a texture; an offset of 0.01 is less


# ------------------------------------------------------------------------------------------------------ seed, arguments


@pytest.mark.parametrize(("spatial_dims", "source"), CASES)
def test_reproducible_by_its_own_seed_only(spatial_dims, source, textures):
    batch, brain = images(spatial_dims)

    def run(seed, other):
        torch.manual_seed(other)
        np.random.seed(other)  # noqa: NPY002 (the point of the test)
        transform = anomaly(spatial_dims, seed, textures, sources=[source])
        return torch.cat([transform(batch, brain)[0], transform(batch, brain)[0]])

    first = run(3, 1)
    assert torch.equal(run(3, 2), first)
    assert not torch.equal(run(4, 1), first)
    assert not torch.equal(first[:4], first[4:])


def test_copy_goes_on_as_the_original():
    transform = anomaly(2)
    image = torch.rand(1, 16, 16)
    transform(image)
    twin = copy.deepcopy(transform)
    assert torch.equal(twin(image)[0], transform(image)[0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"prob": 0.2},
        {"sources": ["texture"]},
        {"cells": (6, 8)},
        {"coverage": (0.3, 0.4)},
        {"offset": (0.01, 0.02)},
        {"brighter": 1.0},
        {"sources": ["texture"], "opacity": (0.01, 0.02)},
        {"edge": 2.0},
    ],
    ids=str,
)
def test_every_argument_does_something(arguments):
    image = torch.full((6, 1, 24, 24), 0.5)
    default = anomaly(2, **({"sources": arguments["sources"]} if "opacity" in arguments else {}))(image)
    changed = anomaly(2, **arguments)(image)
    assert not torch.equal(changed[0], default[0])
    if "prob" not in arguments:  # the first mask is drawn before anything that depends on the source
        assert torch.equal(changed[2][0], default[2][0]) == (not {"cells", "coverage"} & set(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims"),
        ({"prob": 1.5}, "prob"),
        ({"prob": -0.1}, "prob"),
        ({"brighter": 1.5}, "brighter"),
        ({"brighter": -0.1}, "brighter"),
        ({"sources": []}, "sources"),
        ({"sources": ["noise"]}, "sources"),
        ({"sources": "intensity"}, "sources"),
        ({"cells": (0, 4)}, "cells"),
        ({"cells": (5, 4)}, "cells"),
        ({"coverage": (0, 0.1)}, "coverage"),
        ({"coverage": (0.5, 1.1)}, "coverage"),
        ({"coverage": (0.5, 0.4)}, "coverage"),
        ({"offset": (0.3, 0.2)}, "offset"),
        ({"offset": (0, 0.2)}, "offset"),
        ({"opacity": (0.5, 1.5)}, "opacity"),
        ({"opacity": (0.9, 0.5)}, "opacity"),
        ({"edge": -1}, "edge"),
        ({"sources": ["folder"]}, "texture_folder"),
        ({"sources": ["folder"], "texture_folder": "nowhere"}, "nowhere"),
        ({"sources": ["folder"], "texture_folder": ".", "spatial_dims": 3}, "folder"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandPerlinAnomaly(**{"spatial_dims": 2, **arguments})


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="No image"):
        RandPerlinAnomaly(2, sources=["folder"], texture_folder=tmp_path)


@pytest.mark.parametrize("shape", [(16, 16), (1, 1, 1, 16, 16)])
def test_ill_image_shape(shape):
    with pytest.raises(ValueError, match="2 spatial dimensions"):
        anomaly(2)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 16, 15), (2, 16, 16)])
def test_ill_brain_shape(shape):
    with pytest.raises(ValueError, match="brain mask"):
        anomaly(2)(torch.zeros(2, 16, 16), torch.ones(shape))


# ----------------------------------------------------------------------------------------------------------- dictionary


def items(count=4, spatial_dims=2, kind=torch.as_tensor):
    batch, brain = images(spatial_dims, batch=count, channels=1)
    return [
        {"image": kind(image), "brain": kind(mask), "patient": "a"} for image, mask in zip(batch, brain, strict=True)
    ]


def test_dictionary_adds_clean_image_and_mask():
    (item,) = items(1)
    result = RandPerlinAnomalyd(anomaly=anomaly(2)).set_random_state(5)(item)
    assert set(result) == {"image", "brain", "patient", "image_clean", "anomaly_mask"}
    assert set(item) == {"image", "brain", "patient"}
    expected = anomaly(2, 5)(item["image"], item["brain"])
    for key, part in zip(("image", "image_clean", "anomaly_mask"), expected, strict=True):
        torch.testing.assert_close(result[key], part)


def test_dictionary_without_brain_and_with_other_keys():
    image = torch.rand(1, 16, 16)
    transform = RandPerlinAnomalyd(
        "x", anomaly=anomaly(2, coverage=(0.5, 0.5)), brain_key="b", clean_key="c", mask_key="m"
    )
    result = transform({"x": image})
    assert set(result) == {"x", "c", "m"}
    assert float(result["m"].mean()) == pytest.approx(0.5, abs=0.01)
    brain = torch.zeros(1, 16, 16)
    brain[:, :4] = 1
    assert not transform({"x": image, "b": brain})["m"][:, 4:].any()


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor])
def test_dictionary_takes_a_collated_batch(kind):
    batch = list_data_collate(items(4, 3, kind))
    result = RandPerlinAnomalyd(anomaly=anomaly(3)).set_random_state(0)(batch)
    assert result["image"].shape == result["image_clean"].shape == (4, 1, *SIZES[3])
    assert result["anomaly_mask"].shape == (4, 1, *SIZES[3])
    assert result["anomaly_mask"].flatten(1).any(1).all()
    torch.testing.assert_close(torch.as_tensor(result["image_clean"]), torch.as_tensor(batch["image"]))


def test_dictionary_takes_one_key():
    with pytest.raises(ValueError, match="one key"):
        RandPerlinAnomalyd(["a", "b"], anomaly=anomaly(2))


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_data_loader(workers):
    def epoch(seed):
        torch.manual_seed(seed)
        data = CacheDataset(items(8), Compose([RandPerlinAnomalyd(anomaly=anomaly(2))]), progress=False)
        loader = DataLoader(data, batch_size=2, num_workers=workers)
        batches = list(loader)
        return {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "image_clean", "anomaly_mask")}

    first = epoch(0)
    assert first["image"].shape == first["anomaly_mask"].shape == (8, 1, *SIZES[2])
    original = torch.stack([item["image"] for item in items(8)])
    torch.testing.assert_close(first["image_clean"], original)
    masks = first["anomaly_mask"].flatten(1)
    assert masks.any(1).all()
    assert len(masks.unique(dim=0)) == 8  # no two workers draw the same
    again = epoch(0)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], epoch(1)["image"])


def test_cached_images_stay_clean_over_epochs():
    data = CacheDataset(items(2), Compose([RandPerlinAnomalyd(anomaly=anomaly(2))]), progress=False)
    epochs = [[data[index] for index in range(2)] for _ in range(2)]
    for first, second in zip(*epochs, strict=True):
        assert torch.equal(first["image_clean"], second["image_clean"])
        assert not torch.equal(first["image"], second["image"])


def test_composition_seeds_the_transform():
    def run(seed):
        transform = Compose([RandPerlinAnomalyd(anomaly=anomaly(2))]).set_random_state(seed)
        return Dataset(items(1), transform)[0]["image"]

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
