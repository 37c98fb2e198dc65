"""Loss of a masked autoencoder by hand-computed values."""

from __future__ import annotations

import pytest
import torch

from ssmctb_monai.losses import MaskedReconstructionLoss, SelfSupervisedLoss, block_reconstruction_loss
from ssmctb_monai.networks import insert_block
from ssmctb_monai.networks.nets import MaskedAutoencoder


def test_mean_over_hidden_voxels_and_channels():
    target = torch.zeros(2, 2, 2, 2)
    reconstruction = torch.full((2, 2, 2, 2), 100.0)
    hidden = torch.zeros(2, 1, 2, 2)
    hidden[0, 0, 0, 1] = hidden[1, 0, 1, 0] = hidden[1, 0, 1, 1] = 1
    reconstruction[0, :, 0, 1] = torch.tensor([1.0, 3.0])
    reconstruction[1, :, 1, 0] = 0
    reconstruction[1, :, 1, 1] = torch.tensor([-2.0, 2.0])
    loss = MaskedReconstructionLoss()((reconstruction, hidden), target)
    torch.testing.assert_close(loss, torch.tensor((1 + 9 + 0 + 0 + 4 + 4) / 6))


def test_no_gradient_where_the_network_saw_the_image():
    reconstruction = torch.rand(1, 1, 4, 4, 4, requires_grad=True)
    hidden = torch.zeros(1, 1, 4, 4, 4)
    hidden[..., 2:] = 1
    MaskedReconstructionLoss()((reconstruction, hidden), torch.zeros(1, 1, 4, 4, 4)).backward()
    torch.testing.assert_close(reconstruction.grad, hidden * reconstruction.detach() * 2 / 32)


def test_half_precision_is_left():
    reconstruction, target = torch.rand(2, 1, 8, 8).bfloat16(), torch.rand(2, 1, 8, 8)
    hidden = torch.ones(2, 1, 8, 8)
    loss = MaskedReconstructionLoss()((reconstruction, hidden.bfloat16()), target.double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (reconstruction.float() - target).square().mean())


def test_nothing_hidden():
    with pytest.raises(ValueError, match="Nothing was hidden"):
        MaskedReconstructionLoss()((torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("reconstruction", "hidden"),
    [((1, 1, 4, 4), (1, 1, 4, 4)), ((1, 2, 4, 4), (1, 2, 4, 4)), ((1, 2, 4, 4), (1, 4, 4))],
)
def test_shapes(reconstruction, hidden):
    prediction = (torch.zeros(reconstruction), torch.ones(hidden))
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\)"):
        MaskedReconstructionLoss()(prediction, torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("block", ["sspcab", "ssmctb"])
def test_with_the_loss_of_a_block(block):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "mlp_dim": 24, "num_layers": 1, "num_heads": 2}
    decoder = {f"decoder_{name}": size for name, size in sizes.items()}
    network = MaskedAutoencoder(2, 1, 32, 4, **sizes, **decoder)
    insert_block(network, block, sample=torch.zeros(1, 1, 32, 32))
    image = torch.rand(2, 1, 32, 32)
    loss = SelfSupervisedLoss(MaskedReconstructionLoss(), network.train(), weight=0.5)
    prediction = network(image)
    total = loss(prediction, image)
    of_block = block_reconstruction_loss(network)
    assert of_block > 0
    torch.testing.assert_close(total, MaskedReconstructionLoss()(prediction, image) + 0.5 * of_block)
    total.backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and "norm_cross_attn" not in name:  # MONAI's, and unused
            assert parameter.grad is not None, name
