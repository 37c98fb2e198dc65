"""Synthetic anomalies put together."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from anomaly_checks import SIZES, images
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor, list_data_collate
from monai.transforms import Compose

from ssmctb_monai.transforms import (
    AnotherPlaceSource,
    BoxShape,
    ContinuousLabel,
    DonorSource,
    EllipsoidShape,
    OffsetSource,
    PerlinShape,
    RandAnomaly,
    RandAnomalyd,
    SoftEdge,
    TextureSource,
    TissueShape,
)

SHAPES = [PerlinShape, EllipsoidShape, BoxShape, lambda: TissueShape(PerlinShape(), width=0.3)]
SOURCES = [OffsetSource, TextureSource, AnotherPlaceSource, DonorSource]
EVERY = [*[(shape, OffsetSource) for shape in SHAPES], *[(PerlinShape, source) for source in SOURCES[1:]]]


def anomaly(spatial_dims, seed=0, **arguments):
    return RandAnomaly(spatial_dims, **{"prob": 1.0, **arguments}).set_random_state(seed)


def all_parts(count=(1, 3), **arguments):
    parts = {"shapes": [shape() for shape in SHAPES], "sources": [source() for source in SOURCES]}
    return {**parts, "count": count, **arguments}


@pytest.mark.parametrize(
    ("spatial_dims", "seed", "coverage", "brighter", "counts", "changes"),
    [
        (2, 0, (0.005, 0.5), 1.0, [42, 136, 42, 0, 4, 28, 4, 0], [10.411152, 45.155971, 10.441717, 0.0]),
        (2, 0, (0.005, 0.5), 0.5, [42, 136, 42, 0, 4, 28, 4, 0], [-7.432798, -19.319112, 1.007386, 0.0]),
        (3, 1, (0.01, 0.8), 1.0, [113, 0, 0, 773, 0, 375, 121, 13], [22.170338, 0.0, 0.0, 171.643408]),
    ],
)
def test_samples_of_the_bundles_stay_what_they_were(spatial_dims, seed, coverage, brighter, counts, changes):
    """Voxels of each anomaly and sums of the changes, from before shapes and sources had classes."""
    batch, brain = images(spatial_dims, channels=4 - spatial_dims, seed=seed)
    transform = RandAnomaly(
        spatial_dims, 0.75, PerlinShape(coverage=coverage), OffsetSource((0.03, 0.3), brighter)
    ).set_random_state(seed)
    corrupted, clean, mask = transform(batch, brain)
    again = transform(batch, brain)[2]
    assert torch.cat([mask, again]).flatten(1).sum(1).tolist() == counts
    found = (corrupted - clean).double().flatten(1).sum(1)
    np.testing.assert_allclose(found, changes, atol=2e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("shape", "source"), EVERY)
@pytest.mark.parametrize("count", [(1, 1), (3, 3)])
def test_what_every_anomaly_keeps(spatial_dims, shape, source, count):
    batch, brain = images(spatial_dims, batch=6)
    batch *= brain
    kept = batch.clone()
    corrupted, clean, mask = anomaly(spatial_dims, shapes=shape(), sources=source(), count=count)(batch, brain)
    assert torch.equal(batch, kept)  # not modified in place
    assert torch.equal(clean, kept)
    assert corrupted.shape == batch.shape
    assert mask.shape == brain.shape
    assert corrupted.dtype == mask.dtype == torch.float32
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert not mask[brain == 0].any()
    assert not corrupted[(brain == 0).expand_as(batch)].any()  # background stays 0
    for sample, noisy, original in zip(mask, corrupted, clean, strict=True):
        assert sample.any()
        assert (noisy != original)[:, sample[0] > 0].float().mean() > 0.8  # the mask marks what was changed


def test_nothing_changes_beyond_the_edge():
    batch, brain = images(3)
    corrupted, clean, mask = anomaly(3, **all_parts(), blend=SoftEdge(width=0.0))(batch, brain)
    changed = (corrupted != clean).any(1, keepdim=True)
    near = torch.nn.functional.max_pool3d(mask, 3, 1, 1) > 0
    assert not changed[~near].any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_sample_is_like_a_batch_of_one(spatial_dims):
    batch, brain = images(spatial_dims)
    parts = {"sources": [OffsetSource(), TextureSource(), AnotherPlaceSource()], "count": (1, 2)}
    expected = anomaly(spatial_dims, 3, **parts)(batch, brain)
    transform = anomaly(spatial_dims, 3, **parts)
    for index in range(4):
        for part, result in zip(transform(batch[index], brain[index]), expected, strict=True):
            torch.testing.assert_close(part, result[index])


def test_donors_are_the_others_of_a_batch_or_those_given():
    batch = torch.arange(1.0, 5).reshape(4, 1, 1, 1).expand(4, 1, 24, 24) / 5
    pairs = set()
    transform = anomaly(2, sources=DonorSource(opacity=(1.0, 1.0)), blend=SoftEdge(0.0))
    for _ in range(20):
        corrupted, _, mask = transform(batch)
        pairs |= {(i, round(5 * float(corrupted[i][mask[i] > 0].median())) - 1) for i in range(4)}
    assert pairs == {(i, j) for i in range(4) for j in range(4) if i != j}
    with pytest.raises(ValueError, match="batch of at least two"):
        transform(batch[0])
    corrupted, _, mask = transform(batch[0], donors=MetaTensor(torch.full((2, 1, 9, 30), 0.9)))
    assert float(corrupted[mask > 0].median()) == pytest.approx(0.9)


def test_count_shapes_and_sources_are_drawn_for_each_anomaly():
    image = torch.full((60, 1, 24, 24), 0.5)
    single = {"shapes": EllipsoidShape(1.0, coverage=(0.0174, 0.0174)), "blend": SoftEdge(0.0)}
    voxels = anomaly(2, count=(1, 3), **single)(image)[2].flatten(1).sum(1)  # 10 an anomaly, unless they meet
    assert [int((voxels == 10 * n).sum()) for n in (1, 2, 3)] == pytest.approx([20, 20, 20], abs=11)
    sources = [OffsetSource((0.01, 0.01), 1.0, texture=0.0), OffsetSource((0.3, 0.3), 0.0, texture=0.0)]
    changes = anomaly(2, sources=sources, **single)(image)[0] - image
    assert 15 < int((changes.flatten(1).amax(1) > 0.005).sum()) < 45
    both = anomaly(2, sources=sources, count=(6, 6), **single)(image)[0] - image
    assert ((both.flatten(1).amax(1) > 0.005) & (both.flatten(1).amin(1) < -0.2)).float().mean() > 0.8
    shapes = [BoxShape(1.0, coverage=(0.5, 0.5)), BoxShape(1.0, coverage=(0.01, 0.01))]
    shares = anomaly(2, shapes=shapes)(image)[2].mean((1, 2, 3))
    assert 15 < int((shares > 0.4).sum()) < 45


def test_label_is_of_what_all_anomalies_have_changed():
    batch, brain = images(2)
    corrupted, clean, label = anomaly(2, **all_parts((2, 2)), label=ContinuousLabel(full=0.5))(batch, brain)
    expected = ((corrupted - clean).abs().mean(1, keepdim=True) / 0.5).clamp(max=1)
    torch.testing.assert_close(label, expected)
    assert not anomaly(2, prob=0.0, label=ContinuousLabel())(batch, brain)[2].any()


@pytest.mark.parametrize("prob", [0.0, 0.3, 0.5, 1.0])
def test_share_of_clean_samples(prob):
    image = torch.full((200, 1, 8, 8), 0.5)
    transform = RandAnomaly(2) if prob == 0.5 else RandAnomaly(2, prob)  # 0.5 is the default
    corrupted, clean, mask = transform.set_random_state(0)(image)
    marked = mask.flatten(1).any(1)
    assert torch.equal(marked, (corrupted != clean).flatten(1).any(1))
    assert float(marked.float().mean()) == pytest.approx(prob, abs=0.1 * (0 < prob < 1))


def test_without_a_brain_the_whole_image_counts_and_in_an_empty_one_nothing():
    image = images(3, batch=1)[0][0]
    half = {"shapes": PerlinShape(coverage=(0.5, 0.5))}
    corrupted, _, mask = anomaly(3, **half)(image)
    assert float(mask.mean()) == pytest.approx(0.5, abs=1e-3)
    assert torch.equal(corrupted, anomaly(3, **half)(image, torch.ones_like(image[:1]))[0])
    corrupted, clean, mask = anomaly(3)(image, torch.zeros_like(image[:1]))
    assert torch.equal(corrupted, image)
    assert torch.equal(clean, image)
    assert not mask.any()


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_results_share_no_memory(prob):
    for image in (torch.rand(1, 16, 16), torch.rand(2, 1, 16, 16)):
        kept = image.clone()
        corrupted, clean, _ = anomaly(2, prob=prob)(image)
        corrupted.zero_()
        assert torch.equal(image, kept)
        assert torch.equal(clean, kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_type_of_the_image_is_kept(dtype):
    image = torch.rand(8, 2, 16, 16).to(dtype)
    corrupted, clean, mask = anomaly(2, **all_parts(), label=ContinuousLabel())(image)
    assert (corrupted.dtype, clean.dtype, mask.dtype) == (dtype, dtype, torch.float32)
    assert (corrupted != clean).flatten(1).any(1).all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_autocast_changes_nothing(spatial_dims):
    batch, brain = images(spatial_dims, batch=8)
    expected = anomaly(spatial_dims, 2, **all_parts())(batch, brain)
    with torch.autocast("cpu", torch.bfloat16):
        result = anomaly(spatial_dims, 2, **all_parts())(batch, brain)
    torch.testing.assert_close(result, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("shape", "source"), EVERY)
def test_same_anomalies_on_the_gpu(spatial_dims, shape, source):
    batch, brain = images(spatial_dims)
    expected = anomaly(spatial_dims, shapes=shape(), sources=source())(batch, brain)
    result = anomaly(spatial_dims, shapes=shape(), sources=source())(batch.cuda(), brain.cuda())
    assert all(part.is_cuda for part in result)
    assert (result[2].cpu() != expected[2]).float().mean() < 1e-3  # voxels on the threshold
    assert ((result[0].cpu() - expected[0]).abs() > 1e-3).float().mean() < 1e-3


# ------------------------------------------------------------------------------------------------------ seed, arguments


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_reproducible_by_its_own_seed_only(spatial_dims):
    batch, brain = images(spatial_dims)

    def run(seed, other):
        torch.manual_seed(other)
        np.random.seed(other)  # noqa: NPY002 (the point of the test)
        transform = anomaly(spatial_dims, seed, **all_parts())
        return torch.cat([transform(batch, brain)[0], transform(batch, brain)[0]])

    first = run(3, 1)
    assert torch.equal(run(3, 2), first)
    assert not torch.equal(run(4, 1), first)
    assert not torch.equal(first[:4], first[4:])


def test_copy_goes_on_as_the_original():
    transform = anomaly(2, **all_parts())
    image = torch.rand(2, 1, 16, 16)
    transform(image)
    twin = copy.deepcopy(transform)
    assert torch.equal(twin(image)[0], transform(image)[0])


def test_configuration_names_the_parts():
    part = "ssmctb_monai.transforms."
    config = {
        "_target_": part + "RandAnomaly",
        "spatial_dims": 2,
        "prob": 1.0,
        "shapes": [{"_target_": part + "EllipsoidShape", "volume": [5, 50]}, {"_target_": part + "PerlinShape"}],
        "sources": {"_target_": part + "OffsetSource", "offset": [[0.03, 0.3], [0.1, 0.2]], "presence": [1.0, 0.6]},
        "blend": {"_target_": part + "SoftEdge", "width": 1.0},
        "label": {"_target_": part + "ContinuousLabel"},
        "count": [1, 3],
    }
    built = ConfigParser({"anomaly": config}).get_parsed_content("anomaly").set_random_state(1)
    batch, brain = images(2)
    shapes = [EllipsoidShape(volume=(5, 50)), PerlinShape()]
    source = OffsetSource([[0.03, 0.3], [0.1, 0.2]], presence=[1.0, 0.6])
    same = RandAnomaly(2, 1.0, shapes, source, SoftEdge(1.0), ContinuousLabel(), (1, 3)).set_random_state(1)
    assert torch.equal(built(batch, brain)[0], same(batch, brain)[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spatial_dims": 1}, ValueError, "spatial_dims"),
        ({"prob": 1.5}, ValueError, "prob"),
        ({"count": (0, 1)}, ValueError, "count"),
        ({"count": (3, 2)}, ValueError, "count"),
        ({"shapes": []}, TypeError, "shapes"),
        ({"shapes": "perlin"}, TypeError, "shapes.*AnomalyShape"),
        ({"sources": [PerlinShape()]}, TypeError, "sources.*AnomalySource"),
        ({"blend": OffsetSource()}, TypeError, "blend.*AnomalyBlend"),
        ({"label": SoftEdge()}, TypeError, "label.*AnomalyLabel"),
    ],
)
def test_ill_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        RandAnomaly(**{"spatial_dims": 2, **arguments})


def test_ill_shapes():
    for shape in ((16, 16), (1, 1, 1, 16, 16)):
        with pytest.raises(ValueError, match="2 spatial dimensions"):
            anomaly(2)(torch.zeros(shape))
    for shape in ((1, 16, 15), (2, 16, 16)):
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
    result = RandAnomalyd(anomaly=anomaly(2)).set_random_state(5)(item)
    assert set(result) == {"image", "brain", "patient", "image_clean", "anomaly_mask"}
    assert set(item) == {"image", "brain", "patient"}
    expected = anomaly(2, 5)(item["image"], item["brain"])
    for key, part in zip(("image", "image_clean", "anomaly_mask"), expected, strict=True):
        torch.testing.assert_close(result[key], part)


def test_dictionary_takes_donors_and_does_not_hand_them_on():
    (item,) = items(1)
    source = DonorSource(opacity=(1.0, 1.0))
    result = RandAnomalyd(anomaly=anomaly(2, sources=source))({**item, "donors": torch.full((1, 1, 9, 9), 0.9)})
    assert "donors" not in result
    assert float(result["image"][result["anomaly_mask"] > 0].median()) == pytest.approx(0.9, abs=0.01)


def test_dictionary_without_brain_and_with_other_keys():
    image = torch.rand(1, 16, 16)
    transform = RandAnomalyd(
        "x",
        anomaly=anomaly(2, shapes=PerlinShape(coverage=(0.5, 0.5))),
        brain_key="b",
        clean_key="c",
        mask_key="m",
        donors_key="d",
    )
    result = transform({"x": image, "d": None})
    assert set(result) == {"x", "c", "m"}
    assert float(result["m"].mean()) == pytest.approx(0.5, abs=0.01)
    brain = torch.zeros(1, 16, 16)
    brain[:, :4] = 1
    assert not transform({"x": image, "b": brain})["m"][:, 4:].any()
    with pytest.raises(ValueError, match="one key"):
        RandAnomalyd(["a", "b"], anomaly=anomaly(2))


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor])
def test_dictionary_takes_a_collated_batch(kind):
    batch = list_data_collate(items(4, 3, kind))
    result = RandAnomalyd(anomaly=anomaly(3, **all_parts())).set_random_state(0)(batch)
    assert result["image"].shape == result["image_clean"].shape == (4, 1, *SIZES[3])
    assert result["anomaly_mask"].shape == (4, 1, *SIZES[3])
    assert result["anomaly_mask"].flatten(1).any(1).all()
    torch.testing.assert_close(torch.as_tensor(result["image_clean"]), torch.as_tensor(batch["image"]))


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_data_loader(workers):
    def epoch(seed):
        torch.manual_seed(seed)
        data = CacheDataset(items(8), Compose([RandAnomalyd(anomaly=anomaly(2))]), progress=False)
        batches = list(DataLoader(data, batch_size=2, num_workers=workers))
        return {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "image_clean", "anomaly_mask")}

    first = epoch(0)
    torch.testing.assert_close(first["image_clean"], torch.stack([item["image"] for item in items(8)]))
    assert len(first["anomaly_mask"].flatten(1).unique(dim=0)) == 8  # no two workers draw the same
    again = epoch(0)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], epoch(1)["image"])


def test_composition_seeds_the_transform_and_cached_images_stay_clean():
    transform = Compose([RandAnomalyd(anomaly=anomaly(2))]).set_random_state(0)
    data = CacheDataset(items(1), transform, progress=False)
    first, second = data[0], data[0]
    assert torch.equal(first["image_clean"], second["image_clean"])
    assert not torch.equal(first["image"], second["image"])
    transform.set_random_state(0)
    assert torch.equal(data[0]["image"], first["image"])
