"""Anomaly maps after the network."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import GaussianSmooth

from ssmctb_monai.transforms import (
    CalibrateScores,
    CalibrateScoresd,
    MaskedGaussianSmooth,
    MaskedGaussianSmoothd,
    ScaleScores,
)


@pytest.fixture
def mask():
    mask = torch.zeros(1, 20, 18, 9)
    mask[0, 4:15, 3:16, 2:] = 1
    return mask


@pytest.mark.parametrize("sigma", [1.5, (2.0, 1.0, 0.5)])
def test_constant_stays_constant_up_to_the_rim(mask, sigma):
    smoothed = MaskedGaussianSmooth(sigma)(torch.full((2, 20, 18, 9), 0.7), mask)
    torch.testing.assert_close(smoothed[:, mask[0] > 0], torch.full((2, int(mask.sum())), 0.7))
    # Beside the mask the level goes on, so that interpolation to another grid finds no edge; far away it is 0.
    torch.testing.assert_close(smoothed[:, 3, 5:14, 4:], torch.full((2, 9, 5), 0.7))
    assert (MaskedGaussianSmooth(0.5)(torch.ones(1, 20, 18, 9), mask)[:, 18:] == 0).all()


def test_one_slice_keeps_its_level():
    # MONAI's smoothing leaves of a volume of one slice the kernel's middle value along the third axis.
    image = torch.ones(1, 30, 30, 1)
    assert GaussianSmooth((1, 1, 3))(image)[0, 15, 15, 0] < 0.2
    torch.testing.assert_close(MaskedGaussianSmooth((1, 1, 3))(image, image), image)


def test_deep_inside_it_is_monais_smoothing():
    image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    smoothed, expected = MaskedGaussianSmooth(1.0)(image, torch.ones_like(image)), GaussianSmooth(1.0)(image)
    inner = (0, slice(10, -10), slice(10, -10))
    torch.testing.assert_close(smoothed[inner], expected[inner])
    assert not torch.allclose(smoothed, expected)


def test_by_hand_and_what_lies_outside_does_not_count():
    image, mask = torch.tensor([[3.0, 1, 100]]), torch.tensor([[1.0, 1, 0]])
    kernel = MaskedGaussianSmooth(1.0)(torch.eye(3)[None, 1], torch.ones(1, 3))[0]  # of one voxel, normalised
    assert kernel[1] > kernel[0] > 0
    smoothed = MaskedGaussianSmooth(1.0)(image, mask)[0]
    low, high = smoothed[1], smoothed[0]
    assert 1 < low < 2 < high < 3
    torch.testing.assert_close(low + high, torch.tensor(4.0))  # two voxels weigh each other alike
    other = MaskedGaussianSmooth(1.0)(torch.tensor([[3.0, 1, -5]]), mask)[0]
    torch.testing.assert_close(other, smoothed)


def test_width_0_is_the_identity(mask):
    image = torch.rand(1, 20, 18, 9)
    torch.testing.assert_close(MaskedGaussianSmooth(0)(image, mask), image * mask)


def test_dictionary_keeps_metadata_and_passes_what_is_missing(mask):
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 20, 18, 9), affine=affine)
    item = MaskedGaussianSmoothd(["pred", "other"], sigma=1.0, allow_missing_keys=True)({"pred": image, "brain": mask})
    torch.testing.assert_close(item["pred"].affine, affine)
    torch.testing.assert_close(item["pred"].as_tensor(), MaskedGaussianSmooth(1.0)(image.as_tensor(), mask))
    with pytest.raises(KeyError):
        MaskedGaussianSmoothd(["pred", "other"], sigma=1.0)({"pred": image, "brain": mask})


def test_faults_are_named(mask):
    with pytest.raises(ValueError, match="sigma must not be negative"):
        MaskedGaussianSmooth((1, -1))
    with pytest.raises(ValueError, match=r"\(20, 18, 8\), but the mask \(20, 18, 9\)"):
        MaskedGaussianSmooth(1)(torch.ones(1, 20, 18, 8), mask)


def odds(p):
    return p / (1 - p)


def test_calibration_by_hand():
    scores = torch.tensor([[0.2, 0.2, 0.2, 0.5, 0.8, 0.9]])
    brain = torch.tensor([[1, 1, 1, 1, 1, 0]])
    calibrated = CalibrateScores(normal=0.1)(scores, brain)
    expected = odds(0.1) * odds(scores[0, :5]) / odds(torch.tensor(0.2))
    torch.testing.assert_close(odds(calibrated[0, :5]), expected)
    torch.testing.assert_close(calibrated[0, 0], torch.tensor(0.1))


def test_calibration_takes_out_a_scan_s_own_level():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 8, 8, 8, generator=generator)
    brain = torch.ones(1, 8, 8, 8)
    low, high = (CalibrateScores()((logits + level).sigmoid(), brain) for level in (-3, 2))
    torch.testing.assert_close(low, high, rtol=1e-4, atol=1e-5)
    assert (low.flatten().argsort() == logits.flatten().argsort()).all()
    torch.testing.assert_close(low.flatten().sort().values[255], torch.tensor(0.05))
    assert not torch.allclose(CalibrateScores(normal=0.2)(logits.sigmoid(), brain), low)


def test_calibration_of_limits_channels_and_kinds():
    scores = torch.tensor([[0.0, 0.5, 1.0], [0.5, 0.5, 0.9]])
    calibrated = CalibrateScores(normal=0.5, least=0.01)(scores, torch.ones(1, 3))
    torch.testing.assert_close(calibrated, torch.tensor([[0.01, 0.5, 0.99], [0.5, 0.5, 0.9]]))
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 4, 4, 4), affine=affine)
    item = CalibrateScoresd(normal=0.2)({"pred": image, "brain": torch.ones(1, 4, 4, 4)})
    torch.testing.assert_close(item["pred"].affine, affine)
    torch.testing.assert_close(
        item["pred"].as_tensor(), CalibrateScores(0.2)(image.as_tensor(), torch.ones(1, 4, 4, 4))
    )
    for arguments in ({"normal": 0}, {"normal": 1}, {"least": 0.5}, {"least": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            CalibrateScores(**arguments)
    with pytest.raises(ValueError, match="empty"):
        CalibrateScores()(image, torch.zeros(1, 4, 4, 4))


def test_scale_by_hand():
    scores = torch.tensor([[0.0, 0.05, 0.1, 0.15, 0.2, 0.6, 1.0]])
    torch.testing.assert_close(
        ScaleScores(threshold=0.2, median=0.1)(scores), torch.tensor([[0.0, 0.025, 0.05, 0.275, 0.5, 0.75, 1.0]])
    )
    for median in (None, 0.0, 0.2, 0.3):  # there is nothing between them
        torch.testing.assert_close(
            ScaleScores(threshold=0.2, median=median)(scores), torch.tensor([[0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0]])
        )
    torch.testing.assert_close(ScaleScores(threshold=1.25)(scores), 0.4 * scores)  # which none of them reaches
    with pytest.raises(ValueError, match="threshold of 0 has no place"):
        ScaleScores(threshold=0)


@pytest.mark.parametrize("threshold", [0.0123, 0.12293476611375809, 0.1, 0.777, 1 - 2**-24])
def test_scale_flags_what_the_threshold_flags(threshold):
    """To the last digit, and the order of scores stays as it is."""
    value = torch.tensor(threshold)
    scores = torch.stack([value, value.nextafter(torch.tensor(0.0)), value.nextafter(torch.tensor(2.0))]).clamp(max=1)
    scaled = ScaleScores(float(value), median=0.01)(scores)
    assert (scaled >= 0.5).tolist() == (scores >= value).tolist()
    ordered = ScaleScores(float(value), median=0.01)(torch.linspace(0, 1, 10_001))
    assert (ordered.diff() > 0).all()


def test_scores_that_are_none_do_not_become_healthy():
    """Else a broken network would find every brain healthy; what takes the maps refuses them."""
    scores = torch.tensor([[float("nan"), -0.5, 0.0, 0.2]])
    expected = torch.tensor([[float("nan"), 0.0, 0.0, 0.5]])
    torch.testing.assert_close(ScaleScores(threshold=0.2)(scores), expected, equal_nan=True)


def test_scale_keeps_metadata():
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    scaled = ScaleScores(0.3)(MetaTensor(torch.rand(1, 4, 4, 4), affine=affine))
    torch.testing.assert_close(scaled.affine, affine)
