"""Tasks on stacks of slices by one network: what its map is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmctb_monai.networks.blocks import SSMCTB
from ssmctb_monai.networks.nets import SSMTL


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SSMTL(2, channels=(4, 8), num_hidden=4).eval()


def test_every_slice_is_restored_from_those_that_are_not_hidden_with_it(network):
    image = torch.rand(1, 1, 8, 12)
    for first in (0, 4, 8):
        other = image.clone()
        other[..., first : first + 4] = torch.rand(1, 1, 8, 4)
        restored, again = network.reconstruct(image), network.reconstruct(other)
        assert torch.equal(restored[..., first : first + 4], again[..., first : first + 4])
        assert not torch.equal(restored, again)


def test_padding_does_not_show_the_last_slice_that_is_hidden(network):
    network.num_hidden = 1
    image = torch.rand(1, 1, 8, 11)  # padded to 12, by the last slice
    other = image.clone()
    other[..., -1] = 0
    assert torch.equal(network.reconstruct(image)[..., -1], network.reconstruct(other)[..., -1])


@pytest.mark.parametrize(("depth", "groups"), [(9, (3, 3, 3)), (5, (3, 2)), (4, (2, 2)), (3, (2, 1)), (2, (1, 1))])
def test_slices_are_hidden_in_equal_groups_and_never_all(network, monkeypatch, depth, groups):
    hidden = []
    trunk = network._trunk
    monkeypatch.setattr(network, "_trunk", lambda x: hidden.append(x[0, 0, 0, :depth] == 0) or trunk(x))
    restored = network.reconstruct(image := torch.rand(1, 1, 8, depth) + 0.1)
    assert tuple(int(each.sum()) for each in hidden) == groups
    assert (torch.stack(hidden).sum(dim=0) == 1).all()
    assert not torch.allclose(restored, network.reconstruct(1 - image))


def test_one_slice_alone_cannot_be_restored(network):
    with pytest.raises(ValueError, match=r"one slice .* \[1, 1, 8, 1\]"):
        network(torch.rand(1, 1, 8, 1))


def test_map_is_the_mean_of_the_tasks(network):
    image = torch.rand(2, 1, 8, 12)
    with torch.no_grad():
        for layer, value in zip((network.questions.weight, network.questions.bias), (0.0, 1.0), strict=True):
            nn.init.constant_(layer, value)
    error = (network.reconstruct(image).clamp(0, 1) - image).abs()
    probability = torch.sigmoid(torch.ones(()))
    torch.testing.assert_close(network(image), (error + 3 * probability) / 4)
    network.question_share = 0.0
    torch.testing.assert_close(network(image), error)


def test_doubt_is_the_mean_of_the_three_questions_at_each_cell():
    torch.manual_seed(0)
    network = SSMTL(3, channels=(4, 8), question_share=1.0).eval()
    image = torch.rand(1, 1, 8, 6, 4)
    logits = network.train()(image)[1]
    assert logits.shape == (1, 3, 4, 3, 2)
    network.eval()
    cells = network.questions(network._trunk(image)[-1]).sigmoid().mean(dim=1, keepdim=True)
    expected = nn.functional.interpolate(cells, size=(8, 6, 4), mode="trilinear")
    torch.testing.assert_close(network(image), expected)


def test_attention_reaches_the_whole_stack():
    torch.manual_seed(0)
    network = SSMTL(2, channels=(4, 8), num_layers=1, block=None).eval()
    image = torch.rand(1, 1, 4, 64)
    other = image.clone()
    other[..., -1] = 0
    far = [network.questions(network._trunk(each)[-1])[..., 0] for each in (image, other)]
    assert not torch.equal(*far)


def test_block_takes_the_place_of_the_trunks_penultimate_convolution():
    (name,) = (name for name, layer in SSMTL(3, 2).named_modules() if isinstance(layer, SSMCTB))
    assert name == "mixing.0"
    shapes = [SSMTL(3, 2, block=block).mixing(torch.rand(2, 64, 4, 4, 4)).shape for block in ("ssmctb", None)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_hidden": 0}, "num_hidden must be at least 1"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"question_share": 1.5}, r"question_share must be in \[0, 1\]"),
        ({"channels": (8,)}, "widths must be at least two"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SSMTL(3, **arguments)
