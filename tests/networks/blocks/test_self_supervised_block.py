"""What every block does: error, loss and anomaly map, in training and in evaluation mode."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from block_checks import random_input
from monai.losses import SSIMLoss
from monai.networks.nets import UNet
from skimage.metrics import structural_similarity
from torch import nn

from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, SelfSupervisedBlock, named_blocks

DIMS = [2, 3]
LOSSES = ["huber", "mse", "mae", "ssim"]


class Constant(nn.Module):
    """A prediction that is known beforehand."""

    def __init__(self, prediction: torch.Tensor) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prediction.to(x.dtype)


def block_predicting(prediction: torch.Tensor, loss: str, delta: float = 1.0) -> SelfSupervisedBlock:
    return SelfSupervisedBlock(Constant(prediction), nn.Identity(), loss, delta)


def small_block(spatial_dims: int, loss: str = "huber", channels: int = 3) -> SSMCTB:
    return SSMCTB(spatial_dims, channels, token_dim=8, loss=loss)


# ---------------------------------------------------------------------------------------------------------------------
# Ill arguments


@pytest.mark.parametrize(("name", "value"), [("loss", "l2"), ("loss", None), ("delta", 0.0), ("delta", -1.0)])
def test_ill_argument(name, value):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        SelfSupervisedBlock(nn.Identity(), nn.Identity(), **{name: value})


def test_delta_nan():
    with pytest.raises(ValueError, match=r"delta .*nan"):
        SelfSupervisedBlock(nn.Identity(), nn.Identity(), delta=float("nan"))


# ---------------------------------------------------------------------------------------------------------------------
# Output


def test_order_is_convolution_relu_attention():
    class Minus(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    x = torch.tensor([-2.0, 3.0]).view(1, 1, 1, 2)
    assert SelfSupervisedBlock(nn.Identity(), Minus())(x).flatten().tolist() == [0.0, -3.0]
    assert SelfSupervisedBlock(Minus(), nn.Identity())(x).flatten().tolist() == [2.0, 0.0]


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_output_does_not_depend_on_the_mode_or_the_loss(spatial_dims):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 3)
    block = small_block(spatial_dims)
    expected = block(x)
    assert torch.equal(block.eval()(x), expected)
    for loss in LOSSES:
        other = small_block(spatial_dims, loss)
        other.load_state_dict(block.state_dict())
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_follows_may_work_in_place(spatial_dims, loss):
    torch.manual_seed(0)
    block, x = small_block(spatial_dims, loss), random_input(spatial_dims, 3)
    gradients = []
    for inplace in (False, True):
        (nn.Sequential(block, nn.ELU(inplace=inplace))(x).sum() + block.reconstruction_loss).backward()
        gradients.append([parameter.grad.clone() for parameter in block.parameters()])
        block.zero_grad()
    assert all(map(torch.equal, *gradients))


# ---------------------------------------------------------------------------------------------------------------------
# Losses by hand

ERRORS = [0.0, 0.5, -0.5, 0.99, 1.0, -1.5, 4.0]
TARGET = torch.tensor([1.0, 0.5, 3.0, 0.25, 2.0, 1.5, -2.0]).view(1, 1, 1, 7)


@pytest.mark.parametrize(
    ("loss", "delta", "by_hand"),
    [
        ("mse", 1.0, [0, 0.25, 0.25, 0.9801, 1, 2.25, 16]),
        ("mae", 1.0, [0, 0.5, 0.5, 0.99, 1, 1.5, 4]),
        ("huber", 1.0, [0, 0.125, 0.125, 0.49005, 0.5, 1.0, 3.5]),
        ("huber", 0.5, [0, 0.125, 0.125, 0.37, 0.375, 0.625, 1.875]),
        ("huber", 2.0, [0, 0.125, 0.125, 0.49005, 0.5, 1.125, 6.0]),
    ],
)
def test_loss_by_hand(loss, delta, by_hand):
    """Both sides of delta: e²/2 below, δ(|e| - δ/2) above. The predictions are at least 0, as after ReLU."""
    block = block_predicting(TARGET + torch.tensor(ERRORS), loss, delta)
    block(TARGET)
    np.testing.assert_allclose(block.anomaly_map(TARGET).flatten(), by_hand, atol=1e-6)
    np.testing.assert_allclose(block.reconstruction_loss.item(), np.mean(by_hand), atol=1e-6)


def test_default_is_huber_with_delta_1():
    block = SelfSupervisedBlock(Constant(TARGET + 3), nn.Identity())
    block(TARGET)
    torch.testing.assert_close(block.reconstruction_loss, torch.tensor(2.5))


def test_mean_is_over_all_elements():
    """Batch, channels and positions weigh alike."""
    target = torch.zeros(2, 3, 4, 5)
    prediction = torch.zeros_like(target)
    prediction[1, 2, 3, 4] = 12.0
    block = block_predicting(prediction, "mae")
    block(target)
    torch.testing.assert_close(block.reconstruction_loss, torch.tensor(12 / 120))
    error = block.anomaly_map(target)
    assert error.shape == (2, 1, 4, 5)
    assert error[1, 0, 3, 4] == 4.0
    assert error.sum() == 4.0


def test_ssim_equals_scikit_image_in_the_interior():
    """1 - SSIM, 11-wide Gaussian window of σ 1.5, over the range of the input; each channel by itself."""
    generator = np.random.default_rng(0)
    target = 5 + generator.random((2, 24, 20)).astype(np.float32)
    prediction = np.clip(target + 0.3 * generator.random(target.shape), 0, None).astype(np.float32)
    error = block_predicting(torch.tensor(prediction)[None], "ssim").anomaly_map(torch.tensor(target)[None])[0, 0]
    maps = [
        structural_similarity(
            prediction[channel],
            target[channel],
            data_range=float(target.max() - target.min()),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1]
        for channel in range(2)
    ]
    expected = 1 - np.mean(maps, axis=0)
    np.testing.assert_allclose(error[5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-4)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_ssim_equals_monai_in_the_interior(spatial_dims):
    """MONAI's SSIMLoss convolves without padding, so that its mean is over the interior."""
    torch.manual_seed(0)
    target = torch.rand(1, 2, *[14, 13, 12][:spatial_dims])
    prediction = target + 0.5 * torch.rand_like(target)
    error = block_predicting(prediction, "ssim").anomaly_map(target)
    expected = SSIMLoss(spatial_dims, data_range=(target.max() - target.min()).item())(prediction, target)
    interior = error[(..., *[slice(5, -5)] * spatial_dims)]
    torch.testing.assert_close(interior.mean(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_perfect_prediction_has_no_error(spatial_dims, loss):
    torch.manual_seed(0)
    x = torch.rand(2, 3, *[12] * spatial_dims)
    block = block_predicting(x, loss)
    block(x)
    torch.testing.assert_close(block.reconstruction_loss, torch.tensor(0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_pulls_the_output_to_the_input(loss):
    """Descent on the loss alone: it trains the block, and in the right direction."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 12, 12) * torch.linspace(0, 1, 12)
    block = small_block(2, loss)
    optimizer = torch.optim.Adam(block.parameters(), 0.02)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        block(x)
        block.reconstruction_loss.backward()
        optimizer.step()
        losses.append(block.reconstruction_loss.item())
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_constant_input_gives_finite_loss_and_gradients(loss):
    """Air around the head, and dead channels: no range, no variance."""
    torch.manual_seed(0)
    for value in (0.0, 1.0, 100.0):
        block = small_block(2, loss)
        x = torch.full((1, 3, 12, 12), value, requires_grad=True)
        block(x)
        block.reconstruction_loss.backward()
        assert block.reconstruction_loss.isfinite()
        assert x.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in block.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", LOSSES)
def test_non_finite_input_is_not_hidden(loss, value):
    torch.manual_seed(0)
    x = torch.rand(1, 3, 12, 12)
    x[0, 0, 6, 6] = value
    block = small_block(2, loss)
    block(x)
    assert not block.reconstruction_loss.isfinite()
    assert not block.anomaly_map(x).isfinite().all()


@pytest.mark.parametrize("loss", ["huber", "mse", "mae"])  # MONAI computes SSIM in float32
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_gradcheck_of_the_loss(spatial_dims, loss):
    """Of input and parameters, in float64."""
    torch.manual_seed(0)
    block = SSMCTB(spatial_dims, 2, token_dim=3, num_heads=1, num_layers=1, loss=loss).double()
    with torch.no_grad():
        block.convolution.bias.fill_(0.5)  # clear of the zero of ReLU
    names = [name for name, _ in block.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in block.parameters()]
    x = torch.rand(1, 2, *[3] * spatial_dims, dtype=torch.float64, requires_grad=True)

    def loss_of(image, *parameters):
        torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (image,))
        return block.reconstruction_loss

    assert torch.autograd.grad(loss_of(x, *values), x)[0].abs().max() > 1e-3  # there is something to check
    assert torch.autograd.gradcheck(loss_of, (x, *values))


@pytest.mark.parametrize("loss", LOSSES)
def test_float64_stays_float64(loss):
    x = random_input(2, 3, dtype=torch.float64)
    block = small_block(2, loss).double()
    assert block(x).dtype == torch.float64
    assert block.reconstruction_loss.dtype == torch.float64
    assert block.anomaly_map(x).dtype == torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# reconstruction_loss


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_loss_is_a_scalar_in_the_graph_in_training_mode(spatial_dims, loss):
    block = small_block(spatial_dims, loss)
    assert block.reconstruction_loss is None
    block(random_input(spatial_dims, 3))
    assert block.reconstruction_loss.shape == ()
    block.reconstruction_loss.backward()
    assert block.convolution.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_no_loss_in_evaluation_mode(spatial_dims):
    x = random_input(spatial_dims, 3)
    block = small_block(spatial_dims)
    block(x)
    network = nn.Sequential(block)
    network.eval()  # reaches the block through its parent
    assert block.reconstruction_loss is None
    network(x)
    assert block.reconstruction_loss is None
    network.train()
    assert block.reconstruction_loss is None
    network(x)
    assert block.reconstruction_loss is not None


def test_loss_is_replaced_by_every_forward():
    torch.manual_seed(0)
    block = small_block(2)
    losses = []
    for scale in (1.0, 2.0):
        x = scale * torch.ones(1, 3, 8, 8)
        output = block(x)
        torch.testing.assert_close(block.reconstruction_loss, nn.functional.huber_loss(output, x))
        losses.append(block.reconstruction_loss)
    assert losses[0] is not losses[1]
    losses[0].backward()  # each in a graph of its own
    losses[1].backward()


def test_loss_sends_gradient_upstream():
    """The layers before the block get gradient through its prediction and through its target."""
    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    block = small_block(2, "mse")
    output = block(x)
    gradient = torch.autograd.grad(block.reconstruction_loss, x, retain_graph=True)[0]
    expected = torch.autograd.grad((output - x).square().mean(), x)[0]
    torch.testing.assert_close(gradient, expected)


def test_no_graph_without_grad():
    block = small_block(2)
    with torch.no_grad():
        block(random_input(2, 3))
    assert not block.reconstruction_loss.requires_grad


def test_loss_is_not_in_the_state_dict():
    block = small_block(2)
    before = list(block.state_dict())
    block(random_input(2, 3))
    assert list(block.state_dict()) == before


@pytest.mark.parametrize("cls", [SSMCTB, SSPCAB])
@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle", "torch.save"])
def test_copies_after_a_training_forward(cls, how):
    torch.manual_seed(0)
    x = random_input(2, 8)
    block = cls(2, 8)
    block(x)
    network = nn.Sequential(block)
    if how == "deepcopy":
        twin = copy.deepcopy(network)
    elif how == "copy":
        twin = nn.Sequential(copy.copy(block))
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(network))
    else:
        buffer = io.BytesIO()
        torch.save(network, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert twin[0].reconstruction_loss is None
    assert block.reconstruction_loss is not None
    assert torch.equal(twin(x), network(x))
    assert torch.equal(twin[0].reconstruction_loss, block.reconstruction_loss)


# ---------------------------------------------------------------------------------------------------------------------
# anomaly_map


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_anomaly_map_is_the_error_of_every_voxel(spatial_dims, loss, training):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 3)
    block = small_block(spatial_dims, loss)
    block(x)
    reconstruction_loss = block.reconstruction_loss.detach()
    block.train(training)
    error = block.anomaly_map(x)
    assert error.shape == (2, 1, *x.shape[2:])
    assert error.isfinite().all()
    assert (error >= 0).all()
    torch.testing.assert_close(error.mean(), reconstruction_loss)


@pytest.mark.parametrize("loss", ["huber", "mse", "mae"])
def test_anomaly_map_values(loss):
    torch.manual_seed(0)
    x = 2 * random_input(2, 3)
    block = small_block(2, loss).eval()
    error = (block(x) - x).abs()
    expected = {"mse": error**2, "mae": error, "huber": torch.where(error < 1, error**2 / 2, error - 0.5)}[loss]
    torch.testing.assert_close(block.anomaly_map(x)[:, 0], (expected[:, 0] + expected[:, 1] + expected[:, 2]) / 3)


def test_anomaly_map_does_not_touch_the_loss():
    torch.manual_seed(0)
    block = small_block(2)
    block(random_input(2, 3))
    before = block.reconstruction_loss
    block.anomaly_map(random_input(2, 3))
    assert block.reconstruction_loss is before
    block.eval()
    block.anomaly_map(random_input(2, 3))
    assert block.reconstruction_loss is None


@pytest.mark.parametrize("loss", LOSSES)
def test_anomaly_map_of_a_sample_does_not_depend_on_its_batch(loss):
    torch.manual_seed(0)
    x = random_input(2, 3)
    x[1] *= 10
    block = small_block(2, loss).eval()
    torch.testing.assert_close(block.anomaly_map(x)[:1], block.anomaly_map(x[:1]))


def test_anomaly_map_is_high_where_the_surroundings_do_not_tell():
    """A bright voxel in a flat image."""
    block = SSMCTB(2, 1, token_dim=4, attention="none").eval()
    with torch.no_grad():
        block.convolution.weight.fill_(0.25)
        block.convolution.bias.zero_()
    x = torch.ones(1, 1, 15, 15)
    x[0, 0, 7, 7] = 5.0
    inside = block.anomaly_map(x)[0, 0, 2:-2, 2:-2]
    assert inside.argmax() == inside.numel() // 2
    torch.testing.assert_close(inside.max(), torch.tensor(3.5))  # Huber of 4


# ---------------------------------------------------------------------------------------------------------------------
# Half precision, networks


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("cls", [SSMCTB, SSPCAB])
def test_bfloat16_autocast(cls, spatial_dims, loss):
    torch.manual_seed(0)
    x = torch.rand(2, 8, *[12] * spatial_dims)
    block = cls(spatial_dims, 8, loss=loss) if cls is SSMCTB else cls(spatial_dims, 8)
    expected, expected_loss = block(x), block.reconstruction_loss
    with torch.autocast("cpu", torch.bfloat16):
        output = block(x)
        error = block.anomaly_map(x)
    assert output.isfinite().all()
    torch.testing.assert_close(output.float(), expected, atol=0.02, rtol=0.02)
    assert block.reconstruction_loss.dtype == torch.float32
    assert error.dtype == torch.float32
    torch.testing.assert_close(block.reconstruction_loss, expected_loss, atol=0.01, rtol=0.02)
    block.reconstruction_loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_loss_of_half_precision_is_computed_in_float32():
    """Of 70,000 errors of 0.1 a sum in bfloat16 would stop far too early, and one in float16 overflow."""
    for dtype in (torch.bfloat16, torch.float16):
        target = torch.zeros(1, 1, 280, 250, dtype=dtype)
        block = block_predicting(torch.full(target.shape, 0.125, dtype=dtype), "mae")
        block(target)
        assert block.reconstruction_loss.dtype == torch.float32
        torch.testing.assert_close(block.reconstruction_loss, torch.tensor(0.125))


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("cls", [SSMCTB, SSPCAB])
def test_trains_inside_sequential(cls, spatial_dims):
    torch.manual_seed(0)
    convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    network = nn.Sequential(
        convolution(1, 8, 3, padding=1),
        cls(spatial_dims, 8, reduction_ratio=2),  # one hidden unit may be dead from the start
        convolution(8, 1, 3, padding=1),
    )
    trains(network, network[1], random_input(spatial_dims, 1))


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("cls", [SSMCTB, SSPCAB])
def test_trains_inside_a_monai_unet(cls, spatial_dims):
    torch.manual_seed(0)
    network = UNet(spatial_dims, 1, 1, channels=(8, 16), strides=(2,), num_res_units=0)
    block = cls(spatial_dims, 8, reduction_ratio=2)
    network.model[0] = nn.Sequential(network.model[0], block)
    trains(network, block, torch.randn(2, 1, *[8] * spatial_dims))


def trains(network: nn.Module, block: SelfSupervisedBlock, x: torch.Tensor) -> None:
    """Task and block loss fall together, and every parameter of the block moves."""
    before = {name: value.detach().clone() for name, value in block.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (network(x) - x).square().mean() + 0.1 * block.reconstruction_loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in block.named_parameters())


def test_blocks_are_found_at_every_depth_and_once():
    block, other = SSMCTB(2, 4), SSPCAB(2, 8)
    network = nn.Sequential(nn.Sequential(nn.ReLU(), block), block, other)
    assert named_blocks(network) == {"0.1": block, "2": other}
    assert named_blocks(nn.ReLU()) == {}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("spatial_dims", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_loss_in_channels_last(spatial_dims, layout, loss):
    """The same value and gradient; the gradient in the input's layout, as all that follows would be slower."""
    torch.manual_seed(0)
    x = random_input(spatial_dims, 3).detach()
    block = small_block(spatial_dims, loss)
    inputs = [x.clone().requires_grad_(), x.to(memory_format=layout).requires_grad_()]
    losses, gradients = [], []
    for image in inputs:
        block(image)
        losses.append(block.reconstruction_loss)
        gradients.append(torch.autograd.grad(block.reconstruction_loss, image)[0])
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    if loss != "ssim":
        assert gradients[1].is_contiguous(memory_format=layout)
