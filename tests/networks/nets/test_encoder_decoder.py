"""Encoder of a classifier and light decoder: structure, block, export of both encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, make_backbone
from ssmctb_monai.networks.nets import EncoderDecoder, Reconstruction

SMALL = {"encoder_width": 4, "decoder_widths": (16, 8, 8, 4, 4)}


def test_sizes_of_the_paper():
    """11.5 million parameters, of which the decoder has 0.3."""
    with torch.device("meta"):
        network = EncoderDecoder(2, 3, block="none")
    counts = {name: sum(x.numel() for x in part.parameters()) for name, part in network.named_children()}
    assert sum(counts.values()) == pytest.approx(11.5e6, rel=0.01)
    assert counts["encoder"] == 11_176_512  # torchvision's ResNet-18 without its last layer
    convolutions = [part for part in network.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))]
    last, penultimate = convolutions[-1], convolutions[-3]  # the shortcut is registered behind it
    assert (last.kernel_size, last.in_channels, last.out_channels) == ((7, 7), 16, 1)
    assert (penultimate.kernel_size, penultimate.in_channels, penultimate.out_channels) == ((3, 3), 16, 16)


@pytest.mark.parametrize("encoder", ["resnet18", "fastvit_t8"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("block", "kind"), [("sspcab", SSPCAB), ("ssmctb", SSMCTB)])
def test_block_in_place_of_the_penultimate_convolution(spatial_dims, encoder, block, kind):
    networks = [EncoderDecoder(spatial_dims, 2, encoder, put, **SMALL) for put in ("none", block)]
    names = [{name for name, _ in network.named_parameters()} for network in networks]
    place = "decoder.4.layers.1."
    assert {name for name in names[0] ^ names[1] if not name.startswith(place)} == set()
    assert isinstance(networks[1].get_submodule(place.rstrip(".")), kind)
    seen = []
    networks[1].get_submodule(place.rstrip(".")).register_forward_hook(
        lambda _, args, output: seen.append(output.shape)
    )
    logits = networks[1].train()(torch.rand(2, 2, *[40] * spatial_dims))
    assert logits.shape == (2, 1, *[40] * spatial_dims)
    assert seen == [(2, 4, *[64 // 4] * spatial_dims)]


def test_every_voxel_is_reached():
    """The output of each voxel depends on the input there, also at the cut border."""
    torch.manual_seed(0)
    network = EncoderDecoder(2, 1, block="none", **SMALL).eval()
    x = torch.rand(1, 1, 50, 70, requires_grad=True)
    network(x)[0, 0, -1, -1].backward()
    assert x.grad[0, 0, -1, -1] != 0


def test_logits_become_probabilities():
    network = EncoderDecoder(2, 1, block="none", **SMALL).eval()
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(network(x), network.training_output(x).sigmoid())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.float32


def test_there_is_no_reconstruction():
    with pytest.raises(TypeError, match="EncoderDecoder finds anomalies without a reconstruction"):
        Reconstruction(EncoderDecoder(2, 1, block="none", **SMALL))


def test_widths():
    with torch.device("meta"):
        for name in ("resnet18", "fastvit_t8"):
            encoder, channels = make_backbone(name, 3, 2, width=8)
            assert encoder(torch.zeros(2, 2, 64, 32, 32, device="meta")).shape == (2, channels, 2, 1, 1)
            assert channels == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "vgg"}, "backbone must be one of resnet18, fastvit_t8"),
        ({"decoder_widths": (8, 4)}, "decoder_widths must be five"),
        ({"decoder_widths": (8, 4, 4, 4, 0)}, r"decoder_widths\[4\]"),
        ({"encoder_width": 0}, "width"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EncoderDecoder(2, **arguments)
