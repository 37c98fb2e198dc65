"""Mixed precision for any inferer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from ssmctb_monai.inferers import AutocastInferer


class Recorder(nn.Module):
    """Notes what its convolution computes in, and further arguments."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(1, 2, 1)  # of one voxel, so that windows see no border
        self.dtypes, self.arguments = set(), []

    def forward(self, x, *args, **kwargs):
        self.arguments.append((args, kwargs))
        output = self.convolution(x)
        self.dtypes.add(output.dtype)
        return output


IMAGE = torch.rand(1, 1, 12, 10, 8)


@pytest.mark.parametrize(("amp", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize(
    "inferer", [SimpleInferer(), SlidingWindowInferer(roi_size=(8, 8, 8), overlap=0.25, mode="gaussian")]
)
def test_precision_inside(inferer, amp, dtype):
    network = Recorder()
    output = AutocastInferer(inferer, amp)(IMAGE, network)
    assert network.dtypes == {dtype}
    assert network.convolution.weight.dtype == torch.float32
    assert output.shape == (1, 2, 12, 10, 8)
    torch.testing.assert_close(output.float(), network.convolution(IMAGE), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("has_bfloat16", "has_amx", "name", "has_gradients", "dtype"),
    [
        (True, False, "AMD EPYC", True, torch.bfloat16),
        (True, True, "Intel Xeon", True, torch.bfloat16),
        (True, False, "", True, torch.bfloat16),
        (True, False, "Intel Xeon", True, torch.float32),
        (True, True, "Intel Xeon", False, torch.float32),
        (False, False, "AMD EPYC", True, torch.float32),
    ],
)
def test_none_is_bfloat16_in_training_where_the_cpu_gains_by_it(
    monkeypatch, has_bfloat16, has_amx, name, has_gradients, dtype
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name} if name else {}, raising=False)
    network = Recorder()
    with torch.set_grad_enabled(has_gradients):
        AutocastInferer(SimpleInferer())(IMAGE, network)
    assert network.dtypes == {dtype}


@pytest.mark.parametrize("layer", [nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize(("size", "dtype"), [((2, 4, 4), torch.float32), ((4, 4, 2), torch.float32), ((3,) * 3, None)])
def test_axes_shorter_than_the_kernel_are_in_float32(layer, size, dtype):
    """oneDNN's bfloat16 gradients are wrong there: NaN, 0, or what lay in the memory before."""
    torch.manual_seed(0)
    network = layer(8, 16, kernel_size=3, padding=1)
    image = torch.randn(2, 8, *size, requires_grad=True)
    inputs = (image, *network.parameters())
    output = AutocastInferer(SimpleInferer(), True)(image, network)
    assert output.dtype == (dtype or torch.bfloat16)
    probe = torch.randn(output.shape)
    gradients = torch.autograd.grad(output, inputs, probe.to(output.dtype))
    expected = torch.autograd.grad(network(image), inputs, probe)
    for gradient, exact in zip(gradients, expected, strict=True):
        assert (gradient - exact).norm() < 0.01 * exact.norm()


def test_large_kernels_are_in_float32():
    """With 7 voxels a side and a stride of 2, axes as long as the kernel gave NaN, too."""
    torch.manual_seed(0)
    network = nn.Conv3d(8, 16, kernel_size=7, stride=2, padding=3).to(memory_format=torch.channels_last_3d)
    image = torch.randn(2, 8, 7, 7, 7)
    output = AutocastInferer(SimpleInferer(), True)(image, network)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, network(image))


def test_arguments_by_name_without_batch_and_in_double_precision():
    class ByName(nn.Module):
        def forward(self, x):
            weight = torch.ones(2, 1, 3, 3, 3, dtype=x.dtype)
            return F.conv3d(input=x, weight=weight, bias=weight[:, 0, 0, 0, 0], padding=1)

    infer = AutocastInferer(SimpleInferer(), True)
    assert infer(torch.rand(1, 2, 4, 4), ByName()).dtype == torch.float32
    assert infer(torch.rand(1, 2, 4, 4).bfloat16(), ByName()).dtype == torch.float32
    assert infer(torch.rand(1, 2, 4, 4).double(), ByName()).dtype == torch.float64


def test_short_axes_count_in_3d_on_a_cpu_only():
    network = nn.Conv2d(1, 2, kernel_size=3, padding=1)
    assert AutocastInferer(SimpleInferer(), True)(torch.rand(1, 1, 2, 8), network).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_none_is_bfloat16_on_cuda():
    network = Recorder().cuda()
    AutocastInferer(SimpleInferer())(IMAGE.cuda(), network)
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert network.dtypes == {torch.bfloat16 if native else torch.float32}


def test_false_turns_an_outer_autocast_off():
    network = Recorder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        AutocastInferer(SimpleInferer(), False)(IMAGE, network)
    assert network.dtypes == {torch.float32}


def test_nothing_stays_on_afterwards():
    AutocastInferer(SimpleInferer(), True)(IMAGE, Recorder())
    assert not torch.is_autocast_enabled("cpu")


def test_further_arguments_reach_the_network():
    network = Recorder()
    AutocastInferer(SimpleInferer(), True)(IMAGE, network, 1, condition=2)
    assert network.arguments == [((1,), {"condition": 2})]


def test_gradients_are_float32():
    network = Recorder()
    AutocastInferer(SimpleInferer(), True)(IMAGE, network).float().mean().backward()
    assert network.convolution.weight.grad.dtype == torch.float32
    assert network.convolution.weight.grad.abs().sum() > 0
