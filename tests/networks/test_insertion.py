from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import (
    UNETR,
    VQVAE,
    AttentionUnet,
    AutoEncoder,
    BasicUNet,
    BasicUNetPlusPlus,
    DiffusionModelUNet,
    DynUNet,
    MaskedAutoEncoderViT,
    SegResNet,
    SwinUNETR,
    UNet,
    ViT,
    VNet,
)
from torch import Tensor, nn

from ssmctb_monai.losses import SelfSupervisedLoss, block_reconstruction_loss
from ssmctb_monai.networks import insert_block, remove_blocks
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, SelfSupervisedBlock
from ssmctb_monai.networks.insertion import InsertedBlock

VIT = {"in_channels": 1, "img_size": 32, "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2}
MAE = {**VIT, "num_heads": 2, "decoder_hidden_size": 24, "decoder_mlp_dim": 32, "decoder_num_layers": 1}
DYN = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3, "filters": [4, 8, 8, 8]}
VQ = {"channels": (8, 8), "num_res_layers": 1, "num_res_channels": (8, 8), "num_embeddings": 16, "embedding_dim": 8}
VQ |= {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}


class Case(NamedTuple):
    make: Callable[[int], nn.Module]
    place: str
    in_place: bool
    scripts: bool = True
    size: int = 32


def diffusion(spatial_dims: int) -> nn.Module:
    settings = {"num_res_blocks": 1, "channels": (8, 8), "attention_levels": (False, True)}
    network = DiffusionModelUNet(spatial_dims, 1, 1, norm_num_groups=8, num_head_channels=8, **settings)
    nn.init.normal_(network.out[-1].conv.weight)  # starts at zero, so that nothing before it would show
    return network


CASES = {
    "UNet": Case(lambda dims: UNet(dims, 1, 2, (4, 8, 16), (2, 2)), "model.1.submodule.2.conv", False),
    "UNet, residual": Case(lambda dims: UNet(dims, 1, 2, (4, 8), (2,), num_res_units=2), "model.2.0.conv", False),
    "BasicUNet": Case(lambda dims: BasicUNet(dims, 1, 2, (4, 4, 8, 8, 8, 4)), "upcat_1.convs.conv_1.conv", True),
    "BasicUNetPlusPlus": Case(
        lambda dims: BasicUNetPlusPlus(dims, 1, 2, (4, 4, 8, 8, 8, 4), deep_supervision=True),
        "upcat_0_4.convs.conv_1.conv",  # not one of the other heads, which run later
        True,
    ),
    "AttentionUnet": Case(lambda dims: AttentionUnet(dims, 1, 2, (4, 8, 16), (2, 2)), "model.1.merge.conv", False),
    "DynUNet": Case(lambda dims: DynUNet(dims, 1, 2, **DYN), "upsamples.2.conv_block.conv2.conv", True),
    "DynUNet, deep supervision": Case(
        lambda dims: DynUNet(dims, 1, 2, **DYN, deep_supervision=True, deep_supr_num=2, res_block=True),
        "upsamples.2.conv_block.conv2.conv",  # not the residual projection, which runs later
        True,
        scripts=False,
    ),
    "SegResNet": Case(
        lambda dims: SegResNet(dims, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)), "up_layers.0.0.conv2.conv", True
    ),
    "VNet": Case(lambda dims: VNet(dims, 1, 2), "out_tr.conv_block.conv", False, size=16),
    "UNETR": Case(
        lambda dims: UNETR(1, 2, 32, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2, spatial_dims=dims),
        "vit.patch_embedding",
        False,
    ),
    "SwinUNETR": Case(
        lambda dims: SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), window_size=2, spatial_dims=dims),
        "swinViT.patch_embed",
        False,
        scripts=False,
        size=64,
    ),
    "AutoEncoder": Case(lambda dims: AutoEncoder(dims, 1, 1, (4, 8), (2, 2)), "decode.decode_0.conv.conv", False),
    "VQVAE": Case(lambda dims: VQVAE(dims, 1, 1, **VQ), "decoder.blocks.3.conv2.conv", True, scripts=False),
    "VQVAE, checkpointed": Case(
        lambda dims: VQVAE(dims, 1, 1, **VQ, use_checkpointing=True),
        "decoder.blocks.3.conv2.conv",
        True,
        scripts=False,
    ),
    "DiffusionModelUNet": Case(diffusion, "up_blocks.1.resnets.1.conv2.conv", True, scripts=False, size=16),
    "MaskedAutoEncoderViT": Case(
        lambda dims: MaskedAutoEncoderViT(**MAE, decoder_num_heads=2, spatial_dims=dims), "patch_embedding", False
    ),
    "ViT": Case(
        lambda dims: ViT(**VIT, num_heads=2, spatial_dims=dims, classification=True, proj_type="perceptron"),
        "patch_embedding",
        False,
    ),
}
over_networks = pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [
        pytest.param(name, dims, marks=[pytest.mark.process] if (name, dims) == ("SwinUNETR", 3) else [])
        for name in CASES
        for dims in (2, 3)
    ],
)


def arguments(name: str, spatial_dims: int) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    image = torch.rand(2, 1, *[CASES[name].size] * spatial_dims)
    return (image, torch.tensor([3, 5])) if name == "DiffusionModelUNet" else (image,)


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [tensor for part in output for tensor in tensors(part)]


def run(network: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(2)  # a masked autoencoder draws its mask
    return tensors(network(*inputs))


def inserted(network: nn.Module) -> dict[str, InsertedBlock]:
    return {name: module for name, module in network.named_modules() if isinstance(module, InsertedBlock)}


def state(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------------- MONAI's networks, 2D and 3D


@over_networks
def test_any_network(name, spatial_dims):
    case, inputs = CASES[name], arguments(name, spatial_dims)
    network = case.make(spatial_dims).eval()
    weights = state(network)
    with torch.no_grad():
        original = run(network, inputs)

    assert insert_block(network, "ssmctb", sample=inputs if len(inputs) > 1 else inputs[0]) is network
    ((place, module),) = inserted(network).items()
    assert (place, bool(module.replaced)) == (case.place, case.in_place)
    with torch.no_grad():
        changed = run(network, inputs)
    assert [tensor.shape for tensor in changed] == [tensor.shape for tensor in original]
    assert not all(map(torch.equal, changed, original))

    kept = {key: value for key, value in state(network).items() if ".block." not in key}
    assert kept.keys() == weights.keys() - {key for key in weights if case.in_place and f"{place}." in key} or (
        "DynUNet" in name and kept.keys() < weights.keys()  # the same module has two names there
    )
    assert all(torch.equal(kept[key], weights[key]) for key in kept)
    result = network.load_state_dict(weights, strict=False)
    assert result.missing_keys
    assert all(".block." in key for key in result.missing_keys)
    assert result.unexpected_keys == []

    check_training(network.train(), inputs)
    network.load_state_dict(weights, strict=False)
    assert equal(state(remove_blocks(network).eval()), weights)
    with torch.no_grad():
        assert all(map(torch.equal, run(network, inputs), original))


def check_training(network, inputs):
    block = next(module for module in network.modules() if isinstance(module, SelfSupervisedBlock))
    before = state(block)
    loss = SelfSupervisedLoss(lambda prediction: prediction.float().square().mean(), network, weight=10)
    value = loss(run(network, inputs)[0])
    assert torch.isfinite(value)
    assert block.reconstruction_loss > 0
    value.backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    torch.optim.SGD(network.parameters(), lr=1).step()
    assert all(torch.isfinite(parameter).all() for parameter in block.parameters())
    assert not equal(state(block), before)


@pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [
        pytest.param(
            name,
            dims,
            marks=[] if name == "UNet" or (name, dims) == ("MaskedAutoEncoderViT", 2) else [pytest.mark.process],
        )
        for index, name in enumerate(CASES)
        for dims in (2, 3)
        if name in ("UNet", "MaskedAutoEncoderViT") or dims == 2 + index % 2  # the others in 2D or in 3D
    ],
)
def test_any_network_exports_as_before(name, spatial_dims):
    inputs = arguments(name, spatial_dims)
    network = insert_block(CASES[name].make(spatial_dims), "ssmctb", sample=inputs).eval()
    if CASES[name].scripts:
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(network), file)
        file.seek(0)
        exported = torch.jit.load(file)
    else:
        with torch.no_grad():
            exported = torch.export.export(network, inputs, strict=False).module()
    with torch.no_grad():
        for output, expected in zip(run(exported, inputs), run(network, inputs), strict=True):
            torch.testing.assert_close(output, expected)


# -------------------------------------------------------------------------------------------------------- the place


class Straight(nn.Module):
    """Runs its convolutions in another order than that of their names, and one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(6, 2, 3, padding=1)  # last
        self.b = nn.Conv2d(6, 6, 3, padding=1)  # last but one
        self.c = nn.Conv2d(1, 6, 3, padding=1)  # first
        self.unused = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.b(self.norm(torch.relu(self.c(x))))))


UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
IMAGE = torch.rand(2, 1, 16, 12, generator=torch.Generator().manual_seed(0))


def test_block_stands_in_place_of_a_convolution_that_keeps_the_shape():
    network = insert_block(Straight(), "ssmctb", sample=IMAGE).eval()
    block = network.b.block
    assert isinstance(block, SSMCTB)
    first = network.norm(torch.relu(network.c(IMAGE)))
    assert torch.equal(network(IMAGE), network.a(torch.relu(block(first))))
    names = [name for name, _ in network.named_parameters()]
    assert not any(name.startswith("b.") and not name.startswith("b.block.") for name in names)


def test_block_stands_after_any_other_convolution():
    network = Straight()
    first = copy.deepcopy(network.c)
    insert_block(network, "sspcab", where="c", sample=IMAGE).eval()
    block = network.c.block
    assert isinstance(block, SSPCAB)
    expected = network.a(torch.relu(network.b(network.norm(torch.relu(block(first(IMAGE)))))))
    assert torch.equal(network(IMAGE), expected)
    assert torch.equal(network.c.weight, first.weight)  # as a network would look at it


def test_the_convolution_itself_may_be_a_unit_with_norm_and_activation():
    network = BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)).eval()
    sample = torch.rand(1, 1, 32, 32)
    insert_block(network, "ssmctb", where="upcat_1.convs.conv_1", sample=sample)
    outputs = {}
    network.upcat_1.convs.conv_0.register_forward_hook(lambda module, args, output: outputs.update(x=output))
    assert torch.equal(network(sample), network.final_conv(network.upcat_1.convs.conv_1.block(outputs["x"])))


def test_several_places():
    network = insert_block(Straight(), "ssmctb", where=["penultimate", "a", "c"], sample=IMAGE)
    assert list(inserted(network)) == ["a", "b", "c"]
    assert [network.a.block.convolution.weight.shape[0], network.c.block.convolution.weight.shape[0]] == [2, 6]
    network(IMAGE)
    losses = [module.reconstruction_loss for module in network.modules() if isinstance(module, SSMCTB)]
    assert block_reconstruction_loss(network) == torch.stack(losses).sum()
    assert inserted(remove_blocks(network)) == {}


def test_either_name_of_a_module_will_do():
    sample = torch.rand(1, 1, 32, 32)
    name = "skip_layers.upsample.conv_block.conv2.conv"
    network = insert_block(DynUNet(2, 1, 2, **DYN), "ssmctb", where=name, sample=sample)
    assert network.get_submodule(name) is network.upsamples[2].conv_block.conv2.conv
    assert isinstance(network.get_submodule(name), InsertedBlock)


def test_callable_gets_the_channels():
    asked = []

    def block(channels: int) -> nn.Module:
        asked.append(channels)
        return nn.Identity()

    network = insert_block(Straight(), block, where=["a", "penultimate"], sample=IMAGE)
    assert asked == [2, 6]
    assert isinstance(network.b.block, nn.Identity)


def test_names_work_with_fewer_channels_than_the_papers_have():
    network = insert_block(Straight(), "sspcab", where="a", sample=IMAGE)
    assert network(IMAGE).shape == (2, 2, 16, 12)


@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_tokens_are_an_image_and_the_class_token_stays(proj_type):
    settings = {"hidden_size": 8, "mlp_dim": 16, "num_layers": 1, "num_heads": 2, "classification": True}
    network = ViT(1, (32, 12), (8, 4), **settings, proj_type=proj_type, spatial_dims=2).eval()
    image = torch.rand(2, 1, 32, 12)
    tokens = network.patch_embedding(image)
    seen = {}
    network.blocks[0].register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    insert_block(network, "ssmctb", sample=image)
    network(image)
    assert torch.equal(seen["x"][:, :1], network.cls_token.expand(2, -1, -1))
    block = next(module for module in network.modules() if isinstance(module, SSMCTB))
    on_grid = torch.stack([tokens[:, 3 * row : 3 * row + 3] for row in range(4)], dim=1).permute(0, 3, 1, 2)
    expected = block(on_grid)
    for row in range(4):
        for column in range(3):
            torch.testing.assert_close(seen["x"][:, 1 + 3 * row + column], expected[:, :, row, column])


# ------------------------------------------------------------------------------------------ the rest is left alone


def test_nothing_else_changes():
    network = Straight().double().train()
    network.norm.eval()
    weights, modes = state(network), {name: module.training for name, module in network.named_modules()}
    block = SSMCTB(2, 6)
    insert_block(network, lambda channels: block, sample=IMAGE.double())
    assert all(torch.equal(value, weights[key]) for key, value in state(network).items() if "block" not in key)
    assert {name: network.get_submodule(name).training for name in modes} == modes
    assert network.b.training
    assert block.training
    assert block.reconstruction_loss is None


def test_random_numbers_go_on_as_before():
    class Noisy(Straight):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    network, block = Noisy(), SSMCTB(2, 6)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    insert_block(network, lambda channels: block, sample=IMAGE)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("where", ["b", "c"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_block_has_the_dtype_of_its_neighbours(where, dtype):
    network = insert_block(Straight().to(dtype), "ssmctb", where=where, sample=IMAGE.to(dtype))
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert network(IMAGE.to(dtype)).dtype == dtype
    moved = network.float()
    assert remove_blocks(moved)(IMAGE).dtype == torch.float32  # the convolution kept aside follows


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["b", "c"])
def test_block_is_on_the_device_of_its_neighbours(where):
    network = insert_block(Straight().cuda(), "ssmctb", where=where, sample=IMAGE.cuda())
    assert {parameter.device.type for parameter in network.parameters()} == {"cuda"}
    assert network(IMAGE.cuda()).device.type == "cuda"
    assert remove_blocks(network)(IMAGE.cuda()).device.type == "cuda"


def test_frozen_networks_and_inference_mode_will_do():
    network = Straight().requires_grad_(False)
    with torch.inference_mode():
        insert_block(network, "ssmctb", sample=IMAGE)
    network(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in network.b.block.parameters())


def test_buffers_are_as_they_were():
    class Counting(Straight):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("runs", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return super().forward(x)

    assert insert_block(Counting(), "ssmctb", sample=IMAGE).runs == 0


@pytest.mark.parametrize("changed", [torch.nan_to_num, nn.Identity()])
def test_the_search_takes_no_infinite_values(changed):
    class Guarded(Straight):
        def forward(self, x: Tensor) -> Tensor:
            x = changed(self.b(torch.relu(self.c(x))))
            assert torch.isfinite(x).all()
            return self.a(x)

    assert list(inserted(insert_block(Guarded(), "ssmctb", sample=IMAGE))) == ["b"]


def test_random_numbers_of_the_network_do_not_make_a_place():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.aside, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            self.aside(x)
            return self.last(x + torch.rand_like(x))

    assert list(inserted(insert_block(Noisy(), "ssmctb", sample=IMAGE))) == ["first"]


def test_a_strided_convolution_stays_even_if_the_sample_has_one_voxel():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 1, 1))
    insert_block(network, "ssmctb", where="1", sample=torch.rand(1, 1, 1, 1))
    assert network(torch.rand(1, 1, 32, 32)).shape == (1, 1, 16, 16)


# --------------------------------------------------------------------------------------------- saving and removing


@pytest.mark.parametrize("where", ["b", "c"])
def test_state_dict_of_a_network_with_block(where):
    one = insert_block(Straight(), "ssmctb", where=where, sample=IMAGE)
    other = insert_block(Straight(), "ssmctb", where=where, sample=IMAGE)
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(one.eval()(IMAGE), other.eval()(IMAGE))
    assert not any("module" in key for key in one.state_dict())
    with pytest.raises(RuntimeError, match=rf"Missing key.*{where}\.block\.convolution"):
        one.load_state_dict(Straight().state_dict())


@pytest.mark.parametrize("where", ["b", "c"])
def test_weights_of_a_network_without_block_are_there_after_removal(where):
    pretrained = Straight().eval()
    network = insert_block(Straight(), "ssmctb", where=where, sample=IMAGE).eval()
    network.load_state_dict(pretrained.state_dict(), strict=False)
    assert not torch.equal(network(IMAGE), pretrained(IMAGE))
    assert torch.equal(remove_blocks(network)(IMAGE), pretrained(IMAGE))


@pytest.mark.parametrize("where", ["b", "c"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_are_whole(where, copied):
    original = Straight().eval()
    expected = original(IMAGE)
    network = insert_block(original, "ssmctb", where=where, sample=IMAGE)
    twin = copied(network)
    assert torch.equal(twin(IMAGE), network(IMAGE))
    twin.load_state_dict({key: value + 1 for key, value in twin.state_dict().items()})
    assert not torch.equal(twin(IMAGE), network(IMAGE))
    assert torch.equal(remove_blocks(network)(IMAGE), expected)


@pytest.mark.parametrize("where", ["b", "c"])
def test_copies_of_parametrised_convolutions(where):
    network = Straight().eval()
    nn.utils.parametrizations.weight_norm(network.get_submodule(where))
    original = copy.deepcopy(network)
    insert_block(network, "ssmctb", where=where, sample=IMAGE)
    for twin in (copy.deepcopy(network), torch.optim.swa_utils.AveragedModel(network).eval().module):
        assert list(inserted(twin)) == [where]
        assert torch.equal(twin(IMAGE), network(IMAGE))
        assert torch.equal(remove_blocks(twin)(IMAGE), original(IMAGE))


def test_a_state_dict_that_does_not_fit_is_refused():
    network = insert_block(Straight(), "ssmctb", where=["b", "c"], sample=IMAGE)
    weights = network.state_dict()
    for key in ("b.typo", "c.typo"):
        with pytest.raises(RuntimeError, match=rf'Unexpected key.*"{key.replace("c.", "c.module.")}"'):
            network.load_state_dict({**weights, key: torch.zeros(())})
    for key in ("b.weight", "c.weight"):
        with pytest.raises(RuntimeError, match=rf"(?s){key[0]}.*size mismatch for .*weight"):
            network.load_state_dict({**weights, key: torch.zeros(1, 2, 3, 4)})


def test_removal_keeps_what_was_trained_since():
    network = insert_block(Straight(), "ssmctb", sample=IMAGE)
    with torch.no_grad():
        network.a.bias += 1
    bias = network.a.bias.clone()
    assert remove_blocks(network) is network
    assert torch.equal(network.a.bias, bias)
    insert_block(network, "ssmctb", sample=IMAGE)  # and it can be put in again


def test_mode_follows_the_network():
    network = insert_block(Straight(), "ssmctb", sample=IMAGE).eval()
    assert not any(module.training for module in remove_blocks(network).modules())


def test_blocks_that_were_there_before_stay():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), SSMCTB(2, 4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 3))
    block = network[1]
    insert_block(network, "ssmctb", sample=IMAGE)
    assert list(inserted(network)) == ["2"]
    assert remove_blocks(network)[1] is block


# ----------------------------------------------------------------------------------------------------------- errors

PLACES = r"Places in Straight, in the order of execution: c \(6 channels, after it\), b \(6 channels, in its place\), "
PLACES += r"a \(2 channels, after it\)\."


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("d", "There is no module 'd'"),
        ("norm", r"A block cannot stand at 'norm' \(BatchNorm2d\)"),
        ("unused", r"A block cannot stand at 'unused' \(Conv2d\).*did not run"),
        ("", r"A block cannot stand at '' \(Straight\)"),
        (["b", "d"], "There is no module 'd'"),
    ],
)
def test_impossible_places(where, message):
    network = Straight()
    weights = state(network)
    with pytest.raises(ValueError, match=f"{message}.*{PLACES}"):
        insert_block(network, "ssmctb", where=where, sample=IMAGE)
    assert equal(state(network), weights)


def test_a_place_takes_one_block():
    network = insert_block(Straight(), "ssmctb", sample=IMAGE)
    with pytest.raises(ValueError, match="There is a block at 'b' already"):
        insert_block(network, "ssmctb", where="b", sample=IMAGE)
    with pytest.raises(ValueError, match=r"'b\.block\.attention'.*part of a block"):
        insert_block(network, "ssmctb", where="b.block.attention", sample=IMAGE)
    with pytest.raises(ValueError, match="none of them twice"):
        insert_block(network, "ssmctb", where=["c", "c"], sample=IMAGE)
    with pytest.raises(ValueError, match="There is a block at 'b' already: name a place"):
        insert_block(network, "ssmctb", sample=IMAGE)
    with pytest.raises(ValueError, match=r"where must name places.*got \[\]"):
        insert_block(network, "ssmctb", where=[], sample=IMAGE)
    unet, sample = BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)), torch.rand(1, 1, 32, 32)
    with pytest.raises(ValueError, match="inside another one"):
        insert_block(unet, "ssmctb", where=["upcat_1.convs.conv_1", "upcat_1.convs.conv_1.conv"], sample=sample)
    insert_block(unet, "ssmctb", where="upcat_1.convs.conv_1.conv", sample=sample)
    with pytest.raises(ValueError, match="or holds one"):
        insert_block(unet, "ssmctb", where="upcat_1.convs.conv_1", sample=sample)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3)),
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
    ],
)
def test_no_penultimate_convolution(network):
    with pytest.raises(ValueError, match=r"There is no convolution before the last one.*Places in Sequential"):
        insert_block(network, "ssmctb", sample=IMAGE)


def test_branches_that_do_not_feed_the_last_convolution_do_not_count():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.aside, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.first(x)
            return self.aside(x), self.last(x)

    assert list(inserted(insert_block(Branches(), "ssmctb", sample=IMAGE))) == ["first"]


@pytest.mark.parametrize("sample", [[2, 1, 16, 12], (2, 1, 16, 12), torch.Size([2, 1, 16, 12])])
def test_the_shape_of_a_sample_will_do(sample):
    """On the network's device, and of its data type."""
    torch.manual_seed(0)
    network = insert_block(Straight().double(), "ssmctb", sample=sample)
    assert list(inserted(network)) == ["b"]
    assert network.b.block.convolution.weight.dtype == torch.float64


@pytest.mark.parametrize("block", ["none", None])
def test_no_block_leaves_the_network_as_it_is(block):
    network = Straight()
    assert insert_block(network, block, sample=[1, 1, 8, 8]) is network
    assert inserted(network) == {}


def test_a_configuration_builds_it_from_plain_data():
    torch.manual_seed(0)
    config = {
        "_target_": "ssmctb_monai.networks.insert_block",
        "network": {"_target_": "UNet", **UNET},
        "block": "ssmctb",
        "sample": [1, 1, 16, 16],
    }
    network = ConfigParser({"network": json.loads(json.dumps(config))}).get_parsed_content("network")
    assert list(inserted(network)) == list(inserted(insert_block(UNet(**UNET), "ssmctb", sample=[1, 1, 16, 16])))


def test_samples():
    with pytest.raises(ValueError, match=r"Straight does not run on the sample \[\(2, 3, 8, 8\)\].*expected"):
        insert_block(Straight(), "ssmctb", sample=torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match=r"sample must be the shape of an input, a tensor, or the tuple .*got list"):
        insert_block(Straight(), "ssmctb", sample=[IMAGE])
    network = Straight()
    network.norm.eval()
    with pytest.raises(ValueError, match="does not run"):
        insert_block(network, "ssmctb", sample=())
    assert network.training
    assert not network.norm.training
    assert not any(module._forward_hooks for module in network.modules())


def test_convolutions_that_are_held_elsewhere_too():
    class Listed(Straight):
        def __init__(self) -> None:
            super().__init__()
            self.steps = [self.c, self.b, self.a]

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = step(x)
            return x

    network = Listed()
    weights = state(network)
    with pytest.raises(ValueError, match="Listed holds b elsewhere, too, and would not call a block there"):
        insert_block(network, "ssmctb", sample=IMAGE)
    assert equal(state(network), weights)


def test_convolutions_with_further_arguments():
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.last = nn.ConvTranspose2d(1, 4, 2, 2), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.up(x, output_size=[2 * size for size in x.shape[2:]]))

    network = Sized()
    with pytest.raises(ValueError, match=r"does not run on the sample.*output_size"):
        insert_block(network, "ssmctb", where="up", sample=IMAGE)
    assert inserted(network) == {}
    assert network(IMAGE).shape == (2, 1, 32, 24)


def test_wrapped_networks():
    with pytest.raises(ValueError, match="DataParallel must wrap the network after the block was inserted"):
        insert_block(nn.DataParallel(Straight()), "ssmctb", sample=IMAGE)


def test_one_dimension_and_no_batch():
    unet = UNet(1, 1, 2, (4, 8), (2,))
    with pytest.raises(ValueError, match=r"no convolution before the last one.*Places in UNet.*none"):
        insert_block(unet, "ssmctb", sample=torch.rand(1, 1, 32))
    with pytest.raises(ValueError, match=r"Places in Sequential.*none"):
        insert_block(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3)), "ssmctb", sample=torch.rand(1, 8, 8))
    with pytest.raises(ValueError, match=r"cannot stand at ''.*Places in Conv2d.*none"):
        insert_block(nn.Conv2d(1, 4, 3), "ssmctb", where="", sample=IMAGE)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("sspcap", "block must be one of"),
        (lambda channels: nn.Conv2d(channels, 3, 1), r"at 'b' it makes \(2, 3, 16, 12\) of \(2, 6, 16, 12\)"),
        (lambda channels: nn.MaxPool2d(2), r"at 'b' it makes \(2, 6, 8, 6\) of \(2, 6, 16, 12\)"),
    ],
)
def test_impossible_blocks(block, message):
    network = Straight()
    weights = state(network)
    with pytest.raises(ValueError, match=message):
        insert_block(network, block, sample=IMAGE)
    assert equal(state(network), weights)


# --------------------------------------------------------------------------------------------------------- configs


def test_one_line_in_a_config():
    parser = ConfigParser(
        {
            "network": {
                "_target_": "ssmctb_monai.networks.insert_block",
                "network": {
                    "_target_": "UNet",
                    "spatial_dims": 3,
                    "in_channels": 1,
                    "out_channels": 2,
                    "channels": [4, 8],
                    "strides": [2],
                },
                "block": "ssmctb",
                "sample": "$torch.zeros(1, 1, 8, 8, 8)",
            },
            "loss": {
                "_target_": "ssmctb_monai.losses.SelfSupervisedLoss",
                "loss": {"_target_": "DiceCELoss", "softmax": True, "to_onehot_y": True},
                "network": "@network",
                "weight": 0.1,
            },
        },
        globals={"torch": "torch"},
    )
    network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("loss")
    image, label = torch.rand(2, 1, 8, 8, 8), torch.randint(0, 2, (2, 1, 8, 8, 8))
    value = loss(network(image), label)
    assert value > loss.loss(network(image), label)
    value.backward()
