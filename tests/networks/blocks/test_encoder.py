from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmctb_monai.networks.blocks import Decoder, Encoder


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_features_of_all_stages(spatial_dims):
    x = torch.rand(2, 3, *(16, 8, 24)[:spatial_dims])
    features = Encoder(spatial_dims, 3, [4, 2, 6])(x)
    sizes = [(16, 8, 24), (8, 4, 12), (4, 2, 6)]
    expected = [(2, width, *size[:spatial_dims]) for width, size in zip([4, 2, 6], sizes, strict=True)]
    assert [tuple(feature.shape) for feature in features] == expected


def test_a_stage_sees_the_largest_values_of_the_one_before():
    encoder = Encoder(2, 1, [4, 8]).eval()
    first, second = encoder(torch.rand(1, 1, 8, 8))
    assert torch.equal(second, encoder.stages[1](nn.functional.max_pool2d(first, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 1, [2]), "spatial_dims"),
        ((2, 0, [2]), "in_channels must be at least 1"),
        ((2, 1, [2, 0]), r"widths\[1\] must be at least 1, got 0"),
        ((2, 1, [2.5]), r"widths\[0\] must be a whole number"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Encoder(*arguments)
    with pytest.raises(ValueError, match=message.replace("in_channels", "out_channels")):
        Decoder(arguments[0], arguments[2], arguments[1])
