"""Sources of synthetic anomalies."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from anomaly_checks import SIZES, images
from skimage.io import imsave

from ssmctb_monai.transforms import (
    AnotherPlaceSource,
    DonorSource,
    FolderSource,
    NestedSource,
    OffsetSource,
    TextureSource,
)

OPAQUE = (1.0, 1.0)


def source_of(source, image, seed=0, region=None, donors=()):
    region = torch.ones(image.shape[1:], dtype=torch.bool) if region is None else region
    return source.set_random_state(seed)(image, region, donors)


# --------------------------------------------------------------------------------------------------------------- offset


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_offsets_lie_in_range_with_a_texture(spatial_dims):
    image = torch.full((2, *SIZES[spatial_dims]), 0.5)
    changes = [source_of(OffsetSource((0.05, 0.15)), image, seed) - 0.5 for seed in range(20)]
    means = torch.stack([change.flatten(1).mean(1) for change in changes])  # the texture's mean is 0
    assert 0.049 < means.abs().min() < 0.07
    assert 0.13 < means.abs().max() < 0.151
    assert (means < 0).any(0).all()
    assert (means > 0).any(0).all()
    assert (means[:, 0].abs() - means[:, 1].abs()).abs().min() > 1e-5  # drawn per channel
    assert (means[:, 0] * means[:, 1] < 0).any()
    roughness = [float(change[0].std() / change[0].mean().abs()) for change in changes]
    assert 0.3 < max(roughness) < 0.51
    assert min(roughness) < 0.1
    smooth = source_of(OffsetSource((0.05, 0.15), texture=0.0), image) - 0.5
    assert smooth.flatten(1).std(1).max() < 1e-6


def test_one_rule_per_channel():
    """FLAIR bright in 9 of 10; T1ce faint, absent in 4 of 10, and dark in two thirds of the others."""
    source = OffsetSource([[0.2, 0.3], [0.03, 0.04]], brighter=[0.9, 1 / 3], presence=[1.0, 0.6], texture=[0.0, 0.5])
    image = torch.full((2, 8, 8), 0.5)
    changes = torch.stack([source_of(source, image, seed) - 0.5 for seed in range(200)])
    means = changes.flatten(2).mean(2)
    assert 0.199 < means[:, 0].abs().min() < means[:, 0].abs().max() < 0.301
    present = means[:, 1] != 0
    assert 0.029 < means[present, 1].abs().min() < means[present, 1].abs().max() < 0.041
    assert changes[:, 0].flatten(1).std(1).max() < 1e-6
    assert changes[present, 1].flatten(1).std(1).max() > 0.01
    for channel, (down, absent, up) in enumerate(((0.1, 0.0, 0.9), (0.4, 0.4, 0.2))):
        shares = [float((means[:, channel].sign() == sign).float().mean()) for sign in (-1, 0, 1)]
        assert shares == pytest.approx([down, absent, up], abs=0.1)  # three standard deviations


def signs_of(source, channels, draws=150):
    changes = [source_of(source, torch.full((channels, 4, 4), 0.5), seed) - 0.5 for seed in range(draws)]
    return torch.stack(changes).flatten(2).mean(2).sign()


def test_lesions_by_their_modality():
    """Bright on FLAIR and T2, dark on T1; the table's shares, of the anomalies that show in a channel at least."""
    names = ["t2f", "t1c", "t1", "t2"]
    signs = signs_of(OffsetSource(texture=0.0, modalities=names), 4)
    somewhere = 1 - 0.1 * 0.4 * 0.3 * 0.1
    for channel, (down, up) in enumerate(((0.0, 0.9), (0.4, 0.2), (0.6, 0.1), (0.1, 0.8))):
        shares = [float((signs[:, channel] == sign).float().mean()) for sign in (-1, 1)]
        assert shares == pytest.approx([down / somewhere, up / somewhere], abs=0.12)  # three standard deviations
    image = torch.rand(1, 8, 8)
    for seed in range(5):  # FLAIR alone is what it was before there were others
        alone, before = (
            source_of(OffsetSource(**given), image, seed) for given in ({"modalities": "flair"}, {"brighter": 1.0})
        )
        torch.testing.assert_close(alone, before, rtol=0, atol=0)
    assert (signs_of(OffsetSource(modalities=["flair", "t1ce"], brighter=0.0, presence=1.0), 2, 20) == -1).all()
    with pytest.raises(ValueError, match="Unknown modality 'ct'"):
        OffsetSource(modalities=["flair", "ct"])


def test_an_anomaly_is_present_in_a_channel_at_least():
    image = torch.full((2, 8, 8), 0.5)
    changes = torch.stack([source_of(OffsetSource(presence=0.2), image, seed) - 0.5 for seed in range(100)])
    present = changes.flatten(2).abs().amax(2) > 0
    assert present.any(1).all()
    assert 0 < int(present.all(1).sum()) < 30


def test_cells_set_the_scale_of_the_texture():
    image = torch.full((1, 64, 64), 0.5)
    steps = [
        np.mean(
            [
                float((change := source_of(OffsetSource(cells=cells), image, seed)[0]).diff(dim=0).std() / change.std())
                for seed in range(5)
            ]
        )
        for cells in ((1, 2), (16, 16))
    ]
    assert steps[1] > 2 * steps[0]


def test_values_for_other_channels_are_refused():
    image = torch.zeros(3, 8, 8)
    for name, value in (("offset", [[0.1, 0.2]] * 2), ("brighter", [0.5] * 2), ("presence", [0.5] * 2)):
        with pytest.raises(ValueError, match=f"{name} is given for 2 channels, but the image has 3"):
            source_of(OffsetSource(**{name: value}), image)


def test_a_rim_within_oedema():
    """By hand: a disc of radius 10, whose voxels 4 and more from its border enhance on T1ce alone."""
    places = torch.stack(torch.meshgrid(torch.arange(25.0), torch.arange(25.0), indexing="ij")) - 12
    radius = places.norm(dim=0)
    oedema = OffsetSource([0.2, 0.2], brighter=1.0, presence=[1, 0], texture=0.0)
    rim = OffsetSource([0.3, 0.3], brighter=1.0, presence=[0, 1], texture=0.0)
    image = torch.full((2, 25, 25), 0.5)
    flair, t1ce = source_of(NestedSource(oedema, rim, depth=(0.4, 0.4)), image, region=radius <= 10)
    torch.testing.assert_close(flair, torch.full((25, 25), 0.7))
    assert (t1ce[radius > 7] == 0.5).all()
    torch.testing.assert_close(t1ce[radius < 5.5], torch.full((int((radius < 5.5).sum()),), 0.8))
    sizes = {int((source_of(NestedSource(oedema, rim), image, seed)[1] > 0.6).sum()) for seed in range(5)}
    assert len(sizes) > 1  # the depth is drawn
    with pytest.raises(ValueError, match="depth must be two increasing numbers"):
        NestedSource(oedema, rim, depth=(0.5, 1.5))


def test_a_rim_that_shows_in_a_modality_that_the_image_lacks():
    """The oedema alone is left, and of a rim with a core, too."""
    oedema = OffsetSource([0.2, 0.2], brighter=1.0, presence=[1, 0], texture=0.0)
    rim = OffsetSource([0.3, 0.3], brighter=1.0, presence=[0, 1], texture=0.0)
    image = torch.stack([torch.full((25, 25), 0.5), torch.zeros(25, 25)])
    for inner in (rim, NestedSource(rim, rim)):
        flair, t1ce = source_of(NestedSource(oedema, inner), image)
        torch.testing.assert_close(flair, torch.full((25, 25), 0.7))
        assert (t1ce == 0).all()


# ------------------------------------------------------------------------------------------------------ texture, places


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_texture_is_noise_over_the_whole_range(spatial_dims):
    image = torch.full((2, *SIZES[spatial_dims]), 0.5)
    texture = source_of(TextureSource(OPAQUE), image)
    for channel in texture:
        assert channel.min() == pytest.approx(0, abs=1e-6)
        assert channel.max() == pytest.approx(1, abs=1e-6)
        assert 0.1 < channel.std() < 0.4
    assert (texture[0] != texture[1]).float().mean() > 0.9  # drawn per channel
    fine = source_of(TextureSource(OPAQUE, cells=(8, 8)), image)
    assert fine.diff(dim=1).std() > texture.diff(dim=1).std()


def test_opacity_mixes_the_source_with_the_image():
    image = images(2, batch=1)[0][0]
    full = source_of(TextureSource(OPAQUE), image)
    torch.testing.assert_close(source_of(TextureSource((0.5, 0.5)), image) - image, 0.5 * (full - image))
    shares = []
    for seed in range(20):
        full, mixed = (source_of(TextureSource(o), image, seed) for o in (OPAQUE, (0.2, 0.6)))
        shares.append(float(((mixed - image) / (full - image)).median()))
    assert 0.2 <= min(shares) < 0.3
    assert 0.5 < max(shares) <= 0.6


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_another_place_moves_the_image_as_a_whole(spatial_dims):
    size = SIZES[spatial_dims]
    places = torch.stack(torch.meshgrid(*[torch.arange(1, n + 1) for n in size], indexing="ij")).float()
    flips = set()
    for seed in range(12):
        moved = source_of(AnotherPlaceSource(OPAQUE), places, seed)
        assert ((moved - places).abs().amax(0) >= 1).float().mean() > 0.97
        torch.testing.assert_close(moved.flatten(1).unique(dim=1), places.flatten(1).unique(dim=1))
        flips.add(tuple(bool(moved[axis].diff(dim=axis).median() < 0) for axis in range(spatial_dims)))
    assert len(flips) > 2


def test_another_place_covers_the_anomaly_with_tissue_from_far_away():
    """Images that look the same flipped, with tissue of 0.1 in the middle and of 0.9 in the corners."""
    near = torch.zeros(1, 32, 24)
    near[0, 14:18, 10:14] = 0.1
    both = near.clone()
    both[0, 2::27, 3::17] = 0.9
    region = torch.zeros(32, 24, dtype=torch.bool)
    region[15, 12] = True
    for seed in range(20):
        for image, expected in ((both, 0.9), (near, 0.1)):
            assert float(source_of(AnotherPlaceSource(OPAQUE), image, seed, region)[0, 15, 12]) == pytest.approx(
                expected
            )


def test_another_place_is_far_also_where_it_is_flipped():
    """A flipped image has the place itself on the other side."""
    size = 40
    places = torch.arange(1.0, size + 1)[None, :, None].expand(1, size, 3).clone()
    places[:, :, [0, 2]] = 0
    region = torch.zeros(size, 3, dtype=torch.bool)
    region[5, 1] = True
    ways = set()
    for seed in range(60):
        found = float(source_of(AnotherPlaceSource(OPAQUE), places, seed, region)[0, 5, 1])
        way = abs(found - 6)
        assert min(way, size - way) >= size / 4 - 1
        ways.add(way)
    assert len(ways) > 10


def test_tissue_of_a_donor_covers_most_of_an_anomaly():
    """A donor whose brain is a third of it; what is filled in has the mean."""
    donor = torch.zeros(1, 48, 48)
    donor[0, 10:38, 14:34] = torch.linspace(0.2, 0.8, 28)[:, None]
    region = torch.zeros(48, 48, dtype=torch.bool)
    region[20:30, 18:28] = True
    mean = donor[donor > 0].mean()
    for seed in range(40):
        content = DonorSource(OPAQUE).set_random_state(seed)(torch.rand(1, 48, 48), region, [donor])
        assert ((content[0][region] - mean).abs() < 1e-6).float().mean() <= 0.3


def test_another_place_has_no_holes_of_background():
    image = torch.zeros(2, 20, 20)
    image[0, 5:15, 5:15] = 0.2
    image[1, 5:15, 5:15] = 0.6
    moved = source_of(AnotherPlaceSource(OPAQUE), image)
    torch.testing.assert_close(moved, torch.tensor([0.2, 0.6])[:, None, None].expand(2, 20, 20))


# ---------------------------------------------------------------------------------------------------------------- donor


def test_donor_is_drawn_among_the_others_and_moved_as_a_whole():
    image = torch.full((2, 20, 16), 0.5)
    ramp = torch.arange(1.0, 321).reshape(1, 20, 16) / 320
    donors = [torch.cat([ramp, 1 - ramp / 2]), torch.full((2, 20, 16), 0.25)]
    found, firsts = set(), set()
    for seed in range(30):
        taken = source_of(DonorSource(OPAQUE), image, seed, donors=donors)
        found.add(len(taken[0].unique()))
        firsts.add(float(taken[0, 0, 0]))
        if len(taken[0].unique()) > 1:
            torch.testing.assert_close(taken[1], 1 - taken[0] / 2)  # channels stay together
            torch.testing.assert_close(taken[0].flatten().sort().values, ramp.flatten())
    assert found == {320, 1}
    assert len(firsts) > 10


@pytest.mark.parametrize("size", [(9, 40), (40, 9), (31, 26)])
def test_tissue_of_a_donor_of_any_size_covers_the_anomaly(size):
    image = torch.full((1, 31, 26), 0.5)
    donor = torch.zeros(1, *size)
    donor[0, 2, 3] = 0.7
    region = torch.zeros(31, 26, dtype=torch.bool)
    region[20, 10] = True
    for seed in range(5):
        taken = source_of(DonorSource(OPAQUE), image, seed, region, [donor])
        assert taken.shape == image.shape
        torch.testing.assert_close(taken, torch.full_like(taken, 0.7))  # its background is filled by its tissue's mean


def test_donor_is_scaled_to_a_multiple_of_the_mean():
    generator = torch.Generator().manual_seed(0)
    image = 0.2 + 0.1 * torch.rand(2, 24, 24, generator=generator)
    donor = 0.5 + 0.1 * torch.rand(2, 24, 24, generator=generator)
    region = torch.zeros(24, 24, dtype=torch.bool)
    region[4:12, 5:9] = True
    ratios = []
    for seed in range(20):
        taken = source_of(DonorSource(OPAQUE, rescale=(1.0, 3.0)), image, seed, region, [donor])
        ratio = taken[:, region].mean(1) / image[:, region].mean(1)
        assert ratio[0] == pytest.approx(ratio[1])
        ratios.append(float(ratio[0]))
    assert 1.0 <= min(ratios) < 1.3
    assert 2.7 < max(ratios) <= 3.0 + 1e-5


def test_a_modality_that_the_donor_lacks_stays_that_of_the_image():
    image = torch.full((2, 12, 10), 0.4)
    donor = torch.full((2, 12, 10), 0.7)
    donor[1] = 0
    expected = torch.stack([donor[0], image[1]])
    for arguments in ({}, {"zoom": (0.5, 2.0)}, {"same_place": True}, {"rescale": (1.75, 1.75)}):
        torch.testing.assert_close(source_of(DonorSource(OPAQUE, **arguments), image, donors=[donor]), expected)


def test_ill_donors():
    image = torch.zeros(2, 8, 8)
    with pytest.raises(ValueError, match="batch of at least two"):
        source_of(DonorSource(), image)
    for shape in ((1, 8, 8), (2, 8, 8, 8)):
        with pytest.raises(ValueError, match="A donor has shape"):
            source_of(DonorSource(), image, donors=[torch.ones(shape)])
    assert torch.isfinite(source_of(DonorSource(rescale=(1, 2)), image, donors=[image])).all()  # no tissue at all


# --------------------------------------------------------------------------------------------------------------- folder


def save(path, array):
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imsave(path, array, check_contrast=False)


def test_folder_takes_crops_of_its_images(tmp_path):
    grey = np.round(255 * np.arange(60 * 70).reshape(60, 70) / (60 * 70)).astype(np.uint8)
    grey[-1, -1] = 255
    save(tmp_path / "ramp.png", grey)
    image = torch.zeros(2, 20, 24)
    corners = set()
    for seed in range(10):
        texture = source_of(FolderSource(tmp_path, OPAQUE), image, seed) * 255
        assert torch.equal(texture[0], texture[1])  # the same in all channels
        rows = (texture[0, 1:19, :] - texture[0, :18, :]).mean()
        assert float(rows) == pytest.approx(255 / 60, rel=0.05)  # at its own scale, neither turned nor stretched
        corners.add(round(float(texture[0, 1, 1]) * 10))
    assert len(corners) > 5


def test_folder_draws_among_its_images_and_enlarges_small_ones(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    save(tmp_path / "a.png", np.full((5, 4), 51, np.uint8))
    save(tmp_path / "b.PNG", np.full((40, 40, 3), 102, np.uint8))
    save(tmp_path / "more" / "c.tif", np.full((40, 40), 204 * 257, np.uint16))
    source = FolderSource(tmp_path, OPAQUE)
    found = [source_of(source, torch.zeros(1, 12, 12), seed) for seed in range(20)]
    assert {round(float(texture.mean()), 3) for texture in found} == {0.2, 0.4, 0.8}
    assert max(float(texture.std()) for texture in found) < 1e-6


def test_folder_is_for_images_in_2d(tmp_path):
    with pytest.raises(ValueError, match="No image"):
        FolderSource(tmp_path)
    save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="TextureSource"):
        source_of(FolderSource(tmp_path), torch.zeros(1, 8, 8, 8))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (OffsetSource, {"offset": (0.3, 0.2)}, "offset"),
        (OffsetSource, {"offset": [[0.1, 0.2], [0, 0.2]]}, "offset"),
        (OffsetSource, {"brighter": 1.5}, "brighter"),
        (OffsetSource, {"brighter": [0.5, -0.1]}, "brighter"),
        (OffsetSource, {"presence": -0.1}, "presence"),
        (OffsetSource, {"presence": [0.0, 0.0]}, "presence"),
        (OffsetSource, {"texture": -1}, "texture"),
        (TextureSource, {"opacity": (0.5, 1.5)}, "opacity"),
        (AnotherPlaceSource, {"opacity": (0.9, 0.5)}, "opacity"),
        (DonorSource, {"rescale": (3, 1)}, "rescale"),
    ],
)
def test_ill_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_donor_is_magnified():
    """Stripes of a period of 4 voxels get one of 8; the background is no part of it."""
    stripes = (torch.arange(64) // 2 % 2).float().expand(1, 64, 64) * 0.5 + 0.25
    donor = torch.zeros(1, 80, 80)
    donor[:, 8:72, 8:72] = stripes
    region = torch.ones(40, 40, dtype=torch.bool)
    source = DonorSource(opacity=(1.0, 1.0), zoom=(2.0, 2.0)).set_random_state(0)
    found = source(torch.zeros(1, 40, 40), region, [donor])
    assert found.min() >= 0.25
    spectrum = torch.fft.rfft(found[0] - found.mean(), dim=1).abs().mean(0)
    assert int(spectrum.argmax()) == 5
    plain = DonorSource(opacity=(1.0, 1.0)).set_random_state(0)(torch.zeros(1, 40, 40), region, [donor])
    assert int(torch.fft.rfft(plain[0] - plain.mean(), dim=1).abs().mean(0).argmax()) == 10
    with pytest.raises(ValueError, match="zoom"):
        DonorSource(zoom=(2.0, 1.0))
    with pytest.raises(ValueError, match="not magnified"):
        DonorSource(zoom=(1.0, 2.0), same_place=True)


def test_jitter_of_another_place():
    image = torch.where(torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.5, 0.4, 0.6)
    region = torch.ones(32, 32, dtype=torch.bool)
    drawn = []
    for seed in range(60):
        found = AnotherPlaceSource((1.0, 1.0), jitter=0.2).set_random_state(seed)(image, region, [])
        low, high = found.aminmax()
        drawn.append((float(found.mean() / image.mean()), float((high - low) / (found.mean() / image.mean()) / 0.2)))
    brightness, contrast = torch.tensor(drawn).T
    for factor in (brightness, contrast):
        assert 0.8 - 1e-4 <= factor.min() < 0.83
        assert 1.17 < factor.max() <= 1.2 + 1e-4
    assert abs(float(torch.corrcoef(torch.stack([brightness, contrast]))[0, 1])) < 0.4
    with pytest.raises(ValueError, match="jitter"):
        AnotherPlaceSource(jitter=2)
