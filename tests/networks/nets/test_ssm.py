"""SSM: the published network, masks and refinement, and what is seen of hidden cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import nn

from ssmctb_monai.networks.blocks import SSMCTB
from ssmctb_monai.networks.error_maps import error_map, gaussian_smooth
from ssmctb_monai.networks.nets import SSM

GOLDEN = Path(__file__).parents[2] / "data/golden"
SMALL = {"channels": (4, 8, 8), "block": None}


def small(spatial_dims=2, **arguments):
    torch.manual_seed(0)
    return SSM(spatial_dims, 1, **{**SMALL, **arguments}).eval()


class MeanOfTheVisible(nn.Module):
    """Restores each pixel by the mean of what is visible around it; notes the masks."""

    def __init__(self, reach=4, known=None):
        super().__init__()
        self.reach = reach
        self.masks = []
        self.known = known

    def forward(self, x, mask):
        self.masks.append(mask.clone())
        box = torch.ones(1, 1, 2 * self.reach + 1, 2 * self.reach + 1)
        total, seen = (F.conv2d(image, box, padding=self.reach) for image in (x, mask))
        restored = total / seen.clamp_min(1e-8)
        if len(self.masks) > 3 and self.known is not None:
            restored = torch.where(seen == 0, self.known, restored)
        return restored, mask


# ---------------------------------------------------------------------------------------------------------- the release


@pytest.fixture(scope="module")
def released():
    """The release's state dict, filled by the formula of the golden file."""
    golden = np.load(GOLDEN / "ssm_network.npz")
    state = {}
    for index, (name, text) in enumerate(zip(golden["names"].tolist(), golden["shapes"].tolist(), strict=True)):
        shape = [int(size) for size in text.split(",")] if text else []
        if len(shape) == 4:
            values = 2 * np.sin(12.9898 * np.arange(1, np.prod(shape) + 1) + index) / np.sqrt(np.prod(shape[1:]))
            state[name] = torch.from_numpy(values).float().view(shape)
        elif name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            state[name] = torch.ones(shape)
        else:
            state[name] = torch.zeros(shape, dtype=torch.long if name.endswith("tracked") else torch.float)
    return state


@torch.no_grad()
def test_network_of_the_release(released):
    golden = {
        name: torch.from_numpy(array)
        for name, array in np.load(GOLDEN / "ssm_network.npz").items()
        if "U" not in array.dtype.str
    }
    network = SSM.from_released({f"module.{name}": value for name, value in released.items()}).eval()
    restored, predicted = network.network(golden["image"] * golden["mask"], golden["mask"])
    torch.testing.assert_close(restored, golden["restored"], atol=1e-5, rtol=0)
    torch.testing.assert_close(predicted, golden["predicted_mask"], atol=1e-5, rtol=0)


def test_other_checkpoints_are_refused(released):
    for state in ({}, {"a": torch.ones(1)}, {name: value for name, value in released.items() if "mask3" not in name}):
        with pytest.raises(ValueError, match="Not a checkpoint of SSM's release"):
            SSM.from_released(state)


@torch.no_grad()
def test_refinement_of_the_release():
    """Masks of both passes, and the maps, smoothed along the last axis alone as the release does it."""
    golden = np.load(GOLDEN / "ssm_refinement.npz")
    image = torch.from_numpy(golden["image"])[None, None]
    network = SSM(2, 1, smoothing=(0, 7)).eval()
    # The release takes a restoration of exactly 0 in the second pass for a pixel that was never hidden.
    box = network.network = MeanOfTheVisible(known=image)
    network.normal_error.fill_(0.75 - 0.9 / 255 * 16384 / 84)  # 255 · score < -0.9
    expected = []
    for index, seed in enumerate((8, 9)):
        for which, cell in enumerate((2, 4, 8)):
            side = 128 // cell
            order = torch.from_numpy(np.random.RandomState(seed).permutation(side**2))
            network.mask_order[index, which, :side, :side] = order.argsort().view(side, side)
            for hidden in order.split(-(-(side**2) // 3)):
                mask = torch.ones(side**2)
                mask[hidden] = 0
                expected.append(mask.view(side, side).repeat_interleave(cell, 0).repeat_interleave(cell, 1))
    uncovered = torch.from_numpy(golden["uncovered"]).float().repeat_interleave(8, 0).repeat_interleave(8, 1)
    errors, _ = network._refine(image)
    assert torch.equal(torch.cat(box.masks[:3])[:, 0], torch.stack(expected[:9]))
    assert torch.equal(torch.cat(box.masks[3:])[:, 0], torch.stack(expected[9:]).maximum(uncovered))
    scores = 84 / 16384 * (errors - 0.75)
    for found, name in ((scores, "pass2_score_raw"), (gaussian_smooth(scores, [0.0, 7.0]), "score_map")):
        np.testing.assert_allclose(found[0, 0, ::8, ::8], golden[name], atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------------------- restoration


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_training_hides_a_set_at_a_time(spatial_dims):
    """What a set hides has no influence on what is restored there."""
    network = small(spatial_dims, cell_sizes=(4, 8), score="l1")
    network.train()
    x = torch.rand(3, 1, *[16] * spatial_dims)
    restored, predicted, masks = network(x)
    assert restored.shape == x.shape
    assert predicted.shape == masks.shape == (3, 3, *[16] * spatial_dims)
    assert torch.equal((1 - masks).sum(dim=1), torch.ones(3, *[16] * spatial_dims))
    assert not torch.equal(masks[0], masks[1])
    sides = {
        tuple((mask[0].diff(dim=-1) != 0).nonzero()[:, -1].add(1).remainder(8).unique().tolist()) for mask in masks
    }
    assert sides <= {(0,), (0, 4), (4,)}  # masks change at the borders of cells
    network.eval()
    with torch.no_grad():
        first, _ = network._restore(x, masks)
        changed, _ = network._restore(torch.where(masks[:, :1] > 0, x, 1 - x), masks)
    hidden = masks[:, :1] == 0
    torch.testing.assert_close(changed[hidden], first[hidden])
    assert (changed - first)[~hidden].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_map_is_the_weighted_error_over_the_cell_sizes(spatial_dims):
    """Also off the stride, and where the fixed masks come again."""
    network = small(spatial_dims, cell_sizes=(1, 3), num_passes=1, score="l1")
    x = torch.rand(1, 1, *{2: (70, 33), 3: (36, 17, 9)}[spatial_dims])
    padded = network.padded(x)
    expected = 0
    for which, weight in enumerate((0.1, 0.9)):
        masks = network._masks(padded, 0, which)
        assert torch.equal((1 - masks).sum(dim=1), torch.ones(1, *padded.shape[2:]))
        hidden = (1 - masks).flatten(2).mean(dim=2)
        torch.testing.assert_close(hidden, torch.full_like(hidden, 1 / 3), atol=0.01, rtol=0)
        restored = sum(network.network(padded * mask, mask)[0] * (1 - mask) for mask in masks[0][:, None, None])
        expected = expected + weight * error_map(restored.clamp(0, 1), padded, "l1")
    torch.testing.assert_close(network(x), network.cut(expected, x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_score_by_the_predicted_mask():
    network = small(score="mask", num_passes=1, cell_sizes=(4,))
    x = torch.rand(1, 1, 32, 32)
    masks = network._masks(x, 0, 0)
    predicted = torch.cat([network.network(x * mask, mask)[1] for mask in masks[0][:, None, None]], dim=1)
    torch.testing.assert_close(network(x), (predicted - masks).square().mean(dim=1, keepdim=True).clamp(max=1))


# ----------------------------------------------------------------------------------------------------------- refinement


@torch.no_grad()
@pytest.mark.parametrize("num_passes", [1, 2, 4])
def test_normal_cells_are_uncovered_and_the_rest_is_not(num_passes):
    """A bright square on a ramp: it stays hidden, what is far from it is restored as it is."""
    image = torch.linspace(0.2, 0.4, 64).expand(1, 1, 64, 64).clone()
    image[..., 16:32, 16:32] = 1
    network = small(score="l1", num_passes=num_passes, cell_sizes=(16,), smoothing=1.0, uncovering_size=8)
    network.network = MeanOfTheVisible(reach=16)
    network.normal_error.fill_(0.1)
    errors = network(image)
    assert errors[..., 16:32, 16:32].min() > 0.1
    if num_passes > 1:
        uncovered = torch.cat(network.network.masks[1:]).amin(dim=(0, 1)) > 0
        assert not uncovered[16:32, 16:32].any()
        assert uncovered.float().mean() > 0.25
        assert errors[0, 0][uncovered].max() == 0
        assert torch.equal(network.reconstruct(image)[0, 0][uncovered], image[0, 0][uncovered])
    network.normal_error.fill_(0)  # as before it is fitted
    network.network.masks.clear()
    network(image)
    assert all(torch.equal((1 - masks).sum(dim=0), torch.ones(1, 64, 64)) for masks in network.network.masks)


def test_threshold_is_a_quantile_in_the_brain():
    network = small(score="l1", smoothing=2.0, normal_quantile=0.8)
    batches = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(2, 1, 40, 30, generator=generator)
        batches.append((image, (torch.rand(2, 1, 40, 30, generator=generator) > 0.5).to(torch.uint8)))
    network.train().fit(batches)
    assert network.training
    assert network.normal_error > 0
    network.eval()
    values = []
    for image, brain in batches:
        padded = network.padded(image)
        errors = network._pass(padded, 0, torch.zeros_like(padded))[0].detach()
        for deviation, axis in ((2.0, 2), (2.0, 3)):
            errors = torch.from_numpy(gaussian_filter1d(errors.numpy(), deviation, axis=axis))
        values.append(errors[..., :40, :30][brain > 0])
    torch.testing.assert_close(network.normal_error, torch.quantile(torch.cat(values), 0.8), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no voxel"):
        network.fit([(batches[0][0], torch.zeros(2, 1, 40, 30))])


@torch.no_grad()
@pytest.mark.parametrize("score", ["l1", "l2", "ssim", "msgms"])
def test_a_modality_that_is_missing_does_not_count(score):
    """As by a network of the other modality alone, with as much uncovered; in a batch with an image that lacks none."""
    one, both = (
        SSM(2, channels, restoration="gaussian", cell_sizes=(8, 12), score=score, smoothing=1.0, uncovering_size=4)
        for channels in (1, 2)
    )
    image = torch.rand(2, 2, 40, 50, generator=torch.Generator().manual_seed(0))
    image[0, 1] = 0
    one.eval().fit([(image[:, :1], torch.ones(2, 1, 40, 50))])
    both.eval().normal_error.copy_(one.normal_error)
    expected = one(image[:1, :1])
    torch.testing.assert_close(both(image)[:1], expected)
    assert 0.1 < (expected == 0).float().mean() < 0.9 or score == "msgms"


def test_sizes_are_in_units_of_the_spacing():
    network = small(3, cell_sizes=(16, 32), spacing=(2.0, 2.0, 4.0), smoothing=4.0, uncovering_size=16)
    assert network.cells == [[8, 8, 4], [16, 16, 8]]
    assert network.weights == [0.2, 0.8]
    assert network.sigma == [2.0, 2.0, 1.0]
    assert network.uncovering_cell == [8, 8, 4]


@torch.no_grad()
def test_a_network_in_bfloat16_refines_as_one_in_float32():
    network = small(smoothing=2.0, uncovering_size=6, score="l1", cell_sizes=(4, 12))
    network.normal_error.fill_(0.2)
    image = torch.rand(1, 1, 48, 48)
    expected = network(image)
    found = network.bfloat16()(image.bfloat16()).float()
    assert (found - expected).abs().mean() < 0.02 < expected.abs().mean()


@pytest.mark.process
@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("spatial_dims", "score"), [(2, "l1"), (2, "msgms"), (3, "l1")])
def test_onnx_takes_other_sizes(spatial_dims, score, tmp_path):
    """With both passes, some cells of which are uncovered."""
    network = small(spatial_dims, score=score, cell_sizes=(4, 12), smoothing=2.0, uncovering_size=6, block="ssmctb")
    sizes = [(1, 1, *size[:spatial_dims]) for size in ((40, 40, 40), (50, 33, 20), (72, 90, 40))]
    images = [torch.rand(size, generator=torch.Generator().manual_seed(0)) for size in sizes]
    errors, _ = network._pass(network.padded(images[0]), 0, torch.zeros(1))
    network.normal_error.copy_(gaussian_smooth(errors, network.sigma).median())
    network.uncovering_share = 0.5
    axes = {"image": {axis: f"axis{axis}" for axis in (0, *range(2, spatial_dims + 2))}}
    names = {"input_names": ["image"], "output_names": ["map"], "dynamic_axes": axes}
    torch.onnx.export(network, (images[0],), str(tmp_path / "model.onnx"), **names, opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for image in images:
        expected = network(image)
        assert 0 < (expected == 0).float().mean() < 0.9 or score == "msgms"
        (found,) = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- building


def test_block_is_the_last_convolution_but_one():
    network = small(block="ssmctb")
    assert isinstance(network.network.gates[-1].second, SSMCTB)
    assert sum(isinstance(module, SSMCTB) for module in network.modules()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "l3"}, "score must be one of"),
        ({"cell_sizes": ()}, "channels must be at least two and cell_sizes one"),
        ({"cell_sizes": (2, -4)}, "cell_sizes must be positive"),
        ({"num_sets": 1}, "num_sets must be at least 2"),
        ({"num_passes": 0}, "num_passes must be at least 1"),
        ({"smoothing": -1}, "smoothing must not be negative"),
        ({"uncovering_share": 1.5}, r"uncovering_share must be in \[0, 1\]"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@torch.no_grad()
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gaussian_mean_of_the_visible(spatial_dims):
    """What the network must beat; SciPy's filter has no reach beyond four deviations."""
    network = SSM(spatial_dims, 2, restoration="gaussian", cell_sizes=(4, 12)).network
    assert network.reach == 12
    network.log_sigma.fill_(np.log(3.0))
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 2, *[20] * spatial_dims, generator=generator)
    mask = (torch.rand(2, 1, *[20] * spatial_dims, generator=generator) > 0.4).float()
    restored, predicted = network(image * mask, mask)
    assert torch.equal(predicted, mask)
    sigma = (0, 0, *[3.0] * spatial_dims)
    total, seen = (gaussian_filter(x.double().numpy(), sigma, mode="constant") for x in (image * mask, mask))
    np.testing.assert_allclose(restored, total / seen, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("sigma", [8.0, 1.0, 0.5])
def test_narrow_gaussian_restores_the_middle_of_a_large_cell(sigma):
    """Of which the nearest visible voxel, 17 away, weighs e^-578 of one here with a deviation of 0.5."""
    network = small(restoration="gaussian", cell_sizes=(32,)).network
    network.log_sigma.fill_(np.log(sigma))
    image, mask = torch.full((1, 1, 96, 96), 0.5), torch.ones(1, 1, 96, 96)
    mask[..., 32:64, 32:64] = 0
    torch.testing.assert_close(network(image * mask, mask)[0], image)


def test_width_of_the_gaussian_is_learned():
    network = small(restoration="gaussian", cell_sizes=(4,)).train()
    x = torch.rand(2, 1, 32, 32)
    restored, _, _ = network(x)
    (restored - x).square().mean().backward()
    assert [name for name, _ in network.named_parameters()] == ["network.log_sigma"]
    assert network.network.log_sigma.grad.abs() > 0
