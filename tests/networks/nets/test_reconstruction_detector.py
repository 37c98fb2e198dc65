"""Any reconstruction network as a detector: hand-made networks and blocks, MONAI's AutoEncoder, export."""

from __future__ import annotations

import copy
import io

import onnxruntime
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import AutoEncoder, VarAutoEncoder
from torch import nn

from ssmctb_monai.losses import SelfSupervisedLoss
from ssmctb_monai.networks import insert_block
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, SelfSupervisedBlock
from ssmctb_monai.networks.error_maps import error_map
from ssmctb_monai.networks.nets import MaskedAutoencoder, Reconstruction, ReconstructionDetector

DIMS = [2, 3]
SCORES = ["l1", "l2", "ssim", "msgms"]


class Plus(nn.Module):
    """Adds one number to each channel."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor(numbers, dtype=torch.float32))

    def forward(self, x):
        return x + self.numbers.view(-1, *[1] * (x.dim() - 2))


class Several(nn.Module):
    """Returns the reconstruction first, among other things."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.plus = Plus(0.5)

    def forward(self, x):
        return self.kind([self.plus(x), torch.tensor(7.0), x])


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken")


def block_adding(number, loss="mae"):
    """A block whose error is the number everywhere, for an input that is not negative."""
    return SelfSupervisedBlock(nn.Identity(), Plus(number), loss)


def autoencoder(spatial_dims, in_channels=1, **arguments):
    torch.manual_seed(0)
    return AutoEncoder(spatial_dims, in_channels, in_channels, channels=(4, 8), strides=(2, 2), **arguments)


def image(spatial_dims, channels=1, size=16, batch=2, seed=0):
    return torch.rand(batch, channels, *[size] * spatial_dims, generator=torch.Generator().manual_seed(seed))


def detector_of(network, score="l1", spatial_dims=2, in_channels=1, stride=1):
    return ReconstructionDetector(spatial_dims, in_channels, network, score, stride)


def score_of(error):
    """The score of a block's error."""
    return error / (1 + error)


# ------------------------------------------------------------------------------------------------------ reconstruction


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize(("score", "expected"), [("l1", 0.375), ("l2", 0.15625)])
def test_error_of_the_reconstruction(spatial_dims, score, expected):
    detector = detector_of(Plus(0.25, -2), score, spatial_dims, 2)  # from 0.5 to 0.75 and, clipped, to 0
    x = torch.full((2, 2, *[16] * spatial_dims), 0.5)
    torch.testing.assert_close(detector.eval()(x), torch.full((2, 1, *[16] * spatial_dims), expected))


@pytest.mark.parametrize("score", SCORES)
def test_compares_the_reconstruction_with_the_image(score):
    network = autoencoder(2, 2).eval()
    x = image(2, 2)
    torch.testing.assert_close(
        detector_of(network, score, in_channels=2).eval()(x), error_map(network(x).clamp(0, 1), x, score)
    )


def test_default_is_the_absolute_difference():
    x = 0.5 + image(2) / 2
    torch.testing.assert_close(detector_of(Plus(-0.5)).eval()(x), torch.full((2, 1, 16, 16), 0.5))


@pytest.mark.parametrize("kind", [tuple, list])
def test_reconstruction_comes_first(kind):
    network = Several(kind)
    detector = detector_of(network).eval()
    x = image(2) / 2
    torch.testing.assert_close(detector(x), torch.full_like(x, 0.5))
    torch.testing.assert_close(detector.reconstruct(x), x + 0.5)


@pytest.mark.parametrize("score", ["l1", "block"])
def test_training_is_that_of_the_network(score):
    output = object()

    class Fixed(nn.Sequential):
        def forward(self, x):
            return output

    detector = detector_of(Fixed(block_adding(1)), score).train()
    assert detector(image(2)) is output


def test_reconstruction_as_a_network():
    network = autoencoder(2)
    alone = Reconstruction(detector_of(network, "ssim")).eval()
    x = image(2)
    assert torch.equal(alone(x), network(x))
    assert {id(parameter) for parameter in alone.parameters()} == {id(parameter) for parameter in network.parameters()}


def test_takes_what_loaders_give():
    x = MetaTensor(image(3), affine=torch.eye(4))
    assert detector_of(autoencoder(3), "msgms", 3).eval()(x).shape == (2, 1, 16, 16, 16)


@pytest.mark.parametrize("score", [*SCORES, "block"])
def test_bfloat16_autocast(score):
    network = insert_block(autoencoder(2), "sspcab", sample=image(2)).eval()
    detector, x = detector_of(network, score).eval(), image(2)
    with torch.autocast("cpu", torch.bfloat16):
        errors = detector(x)
    assert errors.dtype == torch.float32
    torch.testing.assert_close(errors, detector(x), atol=0.1, rtol=0.1)


def test_copy_and_state_dict():
    detector = detector_of(insert_block(autoencoder(2), "sspcab", sample=image(2)), "block")
    detector.train()(image(2))
    twin = copy.deepcopy(detector).eval()
    x = image(2)
    assert torch.equal(twin(x), detector.eval()(x))
    next(twin.parameters()).data += 1
    assert not torch.equal(twin(x), detector(x))
    twin.load_state_dict(detector.state_dict())
    assert torch.equal(twin(x), detector(x))
    assert all(name.startswith("network.") for name in detector.state_dict())


# -------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("loss", ["huber", "mse", "mae", "ssim"])
def test_one_block_is_its_anomaly_map(spatial_dims, loss):
    torch.manual_seed(0)
    block = SSMCTB(spatial_dims, 8, token_dim=8, loss=loss)
    x = image(spatial_dims, 8, size=9)
    errors = detector_of(nn.Sequential(nn.Identity(), block), "block", spatial_dims, 8).eval()(x)
    torch.testing.assert_close(errors, score_of(block.anomaly_map(x)))
    assert block.reconstruction_loss is None


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_mean_over_blocks_of_any_resolution(spatial_dims):
    pool = nn.AvgPool2d(4) if spatial_dims == 2 else nn.AvgPool3d(4)
    network = nn.Sequential(block_adding(1), nn.ModuleDict({"deep": pool})["deep"], nn.Sequential(block_adding(4)))
    errors = detector_of(network, "block", spatial_dims).eval()(image(spatial_dims, size=12))
    torch.testing.assert_close(errors, torch.full((2, 1, *[12] * spatial_dims), score_of(2.5)))


def test_errors_are_averaged_over_channels():
    errors = detector_of(SelfSupervisedBlock(nn.Identity(), Plus(1, 2), "mae"), "block", in_channels=2)
    torch.testing.assert_close(errors.eval()(image(2, 2)), torch.full((2, 1, 16, 16), score_of(1.5)))


@pytest.mark.parametrize(("spatial_dims", "row"), [(2, [0, 0.25, 0.75, 1]), (3, [0, 0.25, 0.75, 1])])
def test_errors_are_resized_linearly(spatial_dims, row):
    class Edge(nn.Module):
        def forward(self, x):
            return x + torch.tensor([0.0, 1.0])

    pool = nn.AvgPool2d(2) if spatial_dims == 2 else nn.AvgPool3d(2)
    network = nn.Sequential(pool, SelfSupervisedBlock(nn.Identity(), Edge(), "mae"))
    errors = detector_of(network, "block", spatial_dims).eval()(image(spatial_dims, size=4))
    torch.testing.assert_close(errors, score_of(torch.tensor(row)).expand(2, 1, *[4] * spatial_dims))


def test_passes_of_each_image_stay_together():
    """Three passes of two images: the error of a block that doubles is its input."""

    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = SelfSupervisedBlock(nn.Identity(), nn.Upsample(scale_factor=1), "mae")
            self.block.attention.forward = lambda x: 2 * x

        def forward(self, x):
            factors = torch.tensor([1.0, 2.0, 6.0]).repeat(len(x)).view(-1, 1, 1, 1)
            return self.block(x.repeat_interleave(3, 0) * factors)

    x = torch.tensor([1.0, 10.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    errors = detector_of(Passes(), "block").eval()(x)
    torch.testing.assert_close(errors, score_of(3 * x))


def test_a_block_that_runs_twice_counts_twice():
    block = block_adding(1)
    block.attention.forward = lambda x: 2 * x  # errors 1 and 2
    errors = detector_of(nn.Sequential(block, block), "block").eval()(torch.ones(1, 1, 4, 4))
    torch.testing.assert_close(errors, torch.full((1, 1, 4, 4), score_of(1.5)))


@pytest.mark.parametrize("last", [nn.Identity, Broken])
def test_hooks_are_removed(last):
    block = block_adding(1)
    detector = detector_of(nn.Sequential(block, last()), "block").eval()
    for _ in range(2):
        if last is Broken:
            with pytest.raises(RuntimeError, match="broken"):
                detector(image(2))
        else:
            detector(image(2))
        assert not block._forward_hooks


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("block", [SSPCAB, SSMCTB])
def test_masked_autoencoder_with_a_block(spatial_dims, block):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "mlp_dim": 8, "num_layers": 1, "num_heads": 1}
    sizes |= {f"decoder_{name}": size for name, size in sizes.items()}
    x = image(spatial_dims)
    network = MaskedAutoencoder(spatial_dims, 1, 16, 4, **sizes)
    insert_block(network, lambda channels: block(spatial_dims, channels), sample=x)
    calls = []
    network.patch_embedding.block.register_forward_hook(lambda module, args, output: calls.append(args[0]))
    detector = detector_of(network, "block", spatial_dims).eval()
    errors = detector(x)
    inserted = next(module for module in network.modules() if isinstance(module, SelfSupervisedBlock))
    assert len(calls) == 4  # one for each set of patches
    grids = [tokens.mT.unflatten(2, [4] * spatial_dims) for tokens in calls]
    maps = [inserted.anomaly_map(grid) for grid in grids]
    mode = "bilinear" if spatial_dims == 2 else "trilinear"
    expected = nn.functional.interpolate(sum(maps) / 4, scale_factor=4, mode=mode)
    torch.testing.assert_close(errors, score_of(expected))
    reconstruction, hidden = detector.train()(x)
    assert reconstruction.shape == hidden.shape == x.shape


def test_trains_with_the_loss_of_its_blocks():
    detector = detector_of(insert_block(autoencoder(2), "ssmctb", sample=image(2)), "block").train()
    x = image(2)
    SelfSupervisedLoss(nn.MSELoss(), detector)(detector(x), x).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())


# -------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_torchscript_saves_and_loads(spatial_dims, score):
    detector = detector_of(autoencoder(spatial_dims), score, spatial_dims).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(detector), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for x in (image(spatial_dims), image(spatial_dims, size=8, batch=1)):
        torch.testing.assert_close(loaded(x), detector(x))
    with pytest.raises(torch.jit.Error, match=r"must have the shape of the image \[1, 1, 9"):
        loaded(image(spatial_dims, size=9, batch=1))


@pytest.mark.process
@pytest.mark.parametrize("score", [*SCORES, "block"])
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_torch_export(spatial_dims, score):
    network = insert_block(autoencoder(spatial_dims), "sspcab", sample=image(spatial_dims))
    detector = detector_of(network, score, spatial_dims).eval()
    exported = torch.export.export(detector, (image(spatial_dims),)).module()
    x = image(spatial_dims, seed=1)
    torch.testing.assert_close(exported(x), detector(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("score", [*SCORES, "block"])
def test_trace_takes_other_batches(score):
    network = insert_block(autoencoder(2), "sspcab", sample=image(2))
    detector = detector_of(network, score).eval()
    traced = torch.jit.trace(detector, image(2))
    torch.testing.assert_close(traced(image(2, batch=3)), detector(image(2, batch=3)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_several_outputs_are_traced():
    detector = detector_of(VarAutoEncoder(2, (1, 16, 16), 1, 4, (4, 8), (2, 2))).eval()
    x = image(2)
    torch.testing.assert_close(torch.jit.trace(detector, x)(x), detector(x))


@pytest.mark.process
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("spatial_dims", "score"), [*((2, score) for score in SCORES), (3, "ssim")])
def test_onnx(tmp_path, spatial_dims, score):
    detector, x = detector_of(autoencoder(spatial_dims), score, spatial_dims).eval(), image(spatial_dims)
    torch.onnx.export(detector, (x,), tmp_path / "detector.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    (errors,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(errors), detector(x), atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("score", [*SCORES, "block"])
def test_sizes_off_the_stride_are_padded_inside(score):
    network = insert_block(autoencoder(2), "sspcab", sample=image(2))
    x, padded = image(2, size=18), nn.functional.pad(image(2, size=18), (0, 2, 0, 2), mode="replicate")
    detector = detector_of(network, score, stride=4).eval()
    torch.testing.assert_close(detector.reconstruct(x), network(padded)[..., :18, :18])
    scores = detector(x)
    assert scores.shape == x.shape
    if score == "block":
        torch.testing.assert_close(scores, detector(padded)[..., :18, :18])
    else:
        assert torch.equal(scores, error_map(detector.reconstruct(x).clamp(0, 1), x, score))
    assert detector.train()(x).shape == x.shape


@pytest.mark.parametrize("kind", [tuple, list])
def test_images_of_the_training_output_are_cut(kind):
    output = detector_of(Several(kind), stride=4).train()(image(2, size=18))
    assert type(output) is kind
    assert [part.shape for part in output] == [(2, 1, 18, 18), (), (2, 1, 18, 18)]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_unknown_score():
    with pytest.raises(ValueError, match="score must be one of l1, l2, ssim, msgms, block, got 'l3'"):
        detector_of(Plus(1), "l3")


def test_no_block_to_score_by():
    with pytest.raises(ValueError, match="AutoEncoder contains no SSPCAB or SSMCTB block"):
        detector_of(autoencoder(2), "block")


def test_no_block_ran():
    class Unused(Plus):
        def __init__(self) -> None:
            super().__init__(1)
            self.block = block_adding(1)

    with pytest.raises(ValueError, match="No block ran within Unused"):
        detector_of(Unused(), "block").eval()(image(2))


def test_block_of_another_batch():
    class First(nn.Sequential):
        def forward(self, x):
            return super().forward(x[:3])

    with pytest.raises(ValueError, match="batch of 3, which is no multiple of 4"):
        detector_of(First(block_adding(1)), "block").eval()(image(2, batch=4))


@pytest.mark.parametrize("score", SCORES)
def test_reconstruction_of_another_shape(score):
    with pytest.raises(ValueError, match=r"\[2, 1, 20, 20\].*\[2, 1, 18, 18\]"):
        detector_of(autoencoder(2), score).eval()(image(2, size=18))
