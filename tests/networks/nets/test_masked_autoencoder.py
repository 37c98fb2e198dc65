"""Masked autoencoder: what is hidden, in which order, and that nothing of it is seen."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from monai.networks.layers import Conv
from monai.networks.nets import MaskedAutoEncoderViT
from torch import nn

from ssmctb_monai.losses import MaskedReconstructionLoss
from ssmctb_monai.networks import insert_block
from ssmctb_monai.networks.nets import MaskedAutoencoder, masked_autoencoder

DIMS = [2, 3]
SIZES = {2: (12, 20), 3: (8, 12, 8)}  # 3 x 5 and 2 x 3 x 2 patches of 4 voxels a side
SMALL = {"hidden_size": 24, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
SMALL |= {f"decoder_{name}": size for name, size in SMALL.items()}

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")


def small(spatial_dims=2, in_channels=2, **arguments):
    torch.manual_seed(0)
    settings = {"img_size": SIZES[spatial_dims], "patch_size": 4, **SMALL, **arguments}
    return MaskedAutoencoder(spatial_dims, in_channels, **settings)


def image(spatial_dims=2, batch=2, in_channels=2, seed=0):
    return torch.rand(batch, in_channels, *SIZES[spatial_dims], generator=torch.Generator().manual_seed(seed))


def places(spatial_dims, patch):
    """Where a patch, counted along the last axis first, lies in the image."""
    slices = []
    for size in reversed(SIZES[spatial_dims]):
        patch, index = divmod(patch, size // 4)
        slices.insert(0, slice(4 * index, 4 * index + 4))
    return (..., *slices)


def neighbours(spatial_dims):
    """Blocks that carry what is in a patch to those beside it."""
    return lambda channels: Conv[Conv.CONV, spatial_dims](channels, channels, kernel_size=3, padding=1)


@pytest.fixture
def numbered_passes(monkeypatch):
    """Puts a network in MONAI's place that predicts the number of the pass everywhere; notes the patches shown."""
    passes = []

    def forward(self, x, masking_ratio):
        tokens = torch.full(
            (len(x), self.patch_embedding.n_patches, self.decoder_pred.out_features), float(len(passes))
        )
        passes.append(masking_ratio)
        return tokens, self._masking(tokens, masking_ratio)[2]

    monkeypatch.setattr(MaskedAutoEncoderViT, "forward", forward)
    return passes


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_order_of_voxels_within_a_patch(spatial_dims):
    network = small(spatial_dims).train()
    nn.init.zeros_(network.decoder_pred.weight)
    network.decoder_pred.bias.data = torch.arange(2.0 * 4**spatial_dims)
    reconstruction, _ = network(image(spatial_dims))
    assert reconstruction.shape == (2, 2, *SIZES[spatial_dims])
    patch = reconstruction[0][places(spatial_dims, 3)]
    assert patch[1].flatten().tolist() == list(range(1, 2 * 4**spatial_dims, 2))  # channels alternate
    assert patch[0, 1].flatten()[0] == 2 * 4 ** (spatial_dims - 1)  # a step along the first axis


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_order_is_that_of_monai_s_embedding(spatial_dims):
    network = small(spatial_dims, proj_type="perceptron")
    x = image(spatial_dims)
    assert torch.equal(network.to_image(network.patch_embedding.patch_embeddings[0](x)), x)


def test_anisotropic_patches():
    network = MaskedAutoencoder(3, 1, (4, 6, 8), (2, 3, 4), masking_ratio=0.5, **SMALL)
    x = torch.rand(1, 1, 4, 6, 8)
    reconstruction, hidden = network.train()(x)
    assert reconstruction.shape == hidden.shape == network.eval()(x).shape == x.shape
    assert hidden[0, 0].unfold(0, 2, 2).unfold(1, 3, 3).unfold(2, 4, 4).flatten(3).std(-1).max() == 0


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("masking_ratio", [0.5, 0.75])
def test_hides_its_share_of_patches_at_random(spatial_dims, masking_ratio):
    network = small(spatial_dims, masking_ratio=masking_ratio).train()
    x = image(spatial_dims, batch=16)
    _, hidden = network(x)
    assert hidden.shape == (16, 1, *SIZES[spatial_dims])
    num_patches = len(network.patch_order)
    patches = torch.stack([hidden[places(spatial_dims, patch)].flatten(1) for patch in range(num_patches)], dim=1)
    assert set(patches.unique().tolist()) == {0, 1}
    assert (patches.std(-1) == 0).all()  # a patch as a whole
    assert (patches[..., 0].sum(1) == num_patches - int((1 - masking_ratio) * num_patches)).all()
    assert len(patches[..., 0].unique(dim=0)) > 1  # each image has its own
    assert not torch.equal(network(x)[1], hidden)  # and each pass


def test_is_monai_s_network():
    network = small(qkv_bias=True)
    original = MaskedAutoEncoderViT(2, SIZES[2], 4, spatial_dims=2, qkv_bias=True, **SMALL)
    state = network.state_dict()
    assert state.keys() - original.state_dict().keys() == {"patch_order"}
    original.load_state_dict({name: value for name, value in state.items() if name != "patch_order"})
    x = image()
    torch.manual_seed(1)
    tokens, mask = original.train()(x)
    torch.manual_seed(1)
    reconstruction, hidden = network.train()(x)
    torch.testing.assert_close(reconstruction, network.to_image(tokens))
    assert torch.equal(hidden[:, 0, ::4, ::4].flatten(1), mask.float())


def test_a_few_steps_lower_the_loss():
    network = small(in_channels=1).train()
    loss = MaskedReconstructionLoss()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    history = []
    for _ in range(25):
        x = torch.rand(8, 1, 1, 1) * torch.linspace(0.5, 1, 20).expand(8, 1, 12, 20)
        history.append(loss(network(x), x))
        optimizer.zero_grad()
        history[-1].backward()
        optimizer.step()
    assert sum(history[-5:]) < 0.3 * sum(history[:5])


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize(("masking_ratio", "num_passes"), [(0.5, 2), (0.65, 3), (0.75, 4), (0.8, 5)])
def test_each_patch_is_the_mean_of_the_passes_that_hid_it(numbered_passes, spatial_dims, masking_ratio, num_passes):
    network = small(spatial_dims, masking_ratio=masking_ratio).eval()
    reconstruction = network(image(spatial_dims))
    assert len(numbered_passes) == num_passes
    num_patches = len(network.patch_order)
    assert torch.cat(numbered_passes, dim=1).sort()[0].tolist() == [list(range(num_patches))] * 2  # each shown once
    sizes = [shown.shape[1] for shown in numbered_passes]
    assert max(sizes) - min(sizes) <= 1
    for number, shown in enumerate(numbered_passes):
        expected = sum(set(range(num_passes)) - {number}) / (num_passes - 1)
        for patch in shown[0]:
            values = reconstruction[places(spatial_dims, int(patch))]
            torch.testing.assert_close(values, torch.full_like(values, expected))


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_a_patch_does_not_take_part_in_its_own_reconstruction(spatial_dims):
    network, x = small(spatial_dims).eval(), image(spatial_dims)
    reconstruction = network(x)
    for patch in range(len(network.patch_order)):
        changed = x.clone()
        changed[places(spatial_dims, patch)] += 1
        difference = (network(changed) - reconstruction).abs()
        assert difference[places(spatial_dims, patch)].max() == 0
        assert difference.max() > 1e-6


def test_a_block_lets_tokens_hold_their_neighbours():
    network = insert_block(small(), neighbours(2), sample=image()).eval()
    changed = image()
    changed[places(2, 7)] += 1
    assert (network(changed) - network(image()))[places(2, 7)].abs().max() > 1e-6


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_is_the_same_for_every_process(spatial_dims):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    network, other = small(spatial_dims).eval(), small(spatial_dims).eval()
    torch.manual_seed(5)
    unlike = MaskedAutoencoder(spatial_dims, 2, SIZES[spatial_dims], 4, **SMALL)
    assert torch.equal(network.patch_order, unlike.patch_order)
    assert network.patch_order.tolist() != sorted(network.patch_order.tolist())
    torch.set_rng_state(state)
    x = image(spatial_dims)
    reconstruction = network(x)
    assert torch.equal(torch.get_rng_state(), state)  # nothing random in it
    assert torch.equal(network(x), reconstruction)
    assert torch.equal(other(x), reconstruction)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_batch_mates_do_not_matter(spatial_dims):
    network, x = small(spatial_dims).eval(), image(spatial_dims, batch=3)
    torch.testing.assert_close(torch.cat([network(one[None]) for one in x]), network(x))


# --------------------------------------------------------------------------------------------------- copies and formats


def test_state_dict_has_the_sets_of_patches():
    network, x = small().eval(), image()
    network.patch_order.copy_(network.patch_order.flip(0).roll(1))
    reconstruction = network(x)
    other = MaskedAutoencoder(2, 2, SIZES[2], 4, **SMALL).eval()
    assert not torch.equal(other.patch_order, network.patch_order)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), reconstruction)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies(twin):
    network, x = small().train(), image()
    network(x)
    other = twin(network).eval()
    with torch.autocast("cpu", torch.bfloat16):
        other(x)
    assert torch.equal(other(x), network.eval()(x))
    other.decoder_pred.bias.data += 1
    assert not torch.equal(other(x), network(x))


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_bfloat16_autocast(spatial_dims):
    network, x = small(spatial_dims), image(spatial_dims)
    with torch.autocast("cpu", torch.bfloat16):
        loss = MaskedReconstructionLoss()(network.train()(x), x)
        reconstruction = network.eval()(x)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)
    torch.testing.assert_close(reconstruction, network(x), atol=0.05, rtol=0.05)


def test_other_types_of_weights():
    network = small().double()
    x = image().double()
    assert network.eval()(x).dtype == torch.float64
    assert [output.dtype for output in network.train()(x)] == [torch.float64] * 2


@pytest.mark.process
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_export(spatial_dims):
    network, x = small(spatial_dims).eval(), image(spatial_dims)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(image(spatial_dims, seed=1)), network(image(spatial_dims, seed=1)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_takes_other_batches():
    network = small().eval()
    traced = torch.jit.trace(network, image())
    torch.testing.assert_close(traced(image(batch=5)), network(image(batch=5)))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"masking_ratio": 0.4}, "masking_ratio must be at least 0.5, got 0.4"),
        ({"masking_ratio": 1.0}, "masking_ratio"),
        ({"masking_ratio": 0.95}, r"0.95 shows none of the 15 patches of an image of \(12, 20\)"),
        ({"patch_size": 5}, "multiple of patch_size"),
    ],
)
def test_ill_arguments(arguments, message):
    settings = {"spatial_dims": 2, "in_channels": 1, "img_size": SIZES[2], "patch_size": 4, **SMALL, **arguments}
    with pytest.raises(ValueError, match=message):
        MaskedAutoencoder(**settings)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 20, 12), (1, 2, 12, 24), (1, 1, 12, 20), (2, 12, 20), (1, 2, 12, 20, 1)])
def test_ill_inputs(shape, mode):
    with pytest.raises(ValueError, match=r"Expected \(batch, 2, 12, 20\), got") as error:
        small().train(mode)(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_einops_is_asked_for(monkeypatch):
    monkeypatch.setattr(masked_autoencoder, "HAS_EINOPS", False)
    with pytest.raises(ImportError, match="pip install einops"):
        small()
