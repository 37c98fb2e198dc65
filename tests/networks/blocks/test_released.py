"""`from_released` against the releases' own values where they are at hand, and a plain reading of the papers."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from block_checks import assert_script_save, golden_folder, random_input, sum_of_shifts

from ssmctb_monai.networks.blocks import ReleasedChannelAttention, from_released

GOLDEN = sorted(golden_folder().glob("*.npz"))

# Offsets of the releases' sub-kernels along the first, second and third spatial axis.
SIGNS = {
    2: {"conv1": "--", "conv2": "+-", "conv3": "-+", "conv4": "++"},
    3: {
        "conv1": "--+",
        "conv1_1": "---",
        "conv2": "+-+",
        "conv2_2": "+--",
        "conv3": "-++",
        "conv3_3": "-+-",
        "conv4": "+++",
        "conv4_4": "++-",
    },
}


def released_state(
    kind: str = "transformer",
    spatial_dims: int = 2,
    channels: int = 8,
    sub_kernel_size: int = 1,
    hidden: int = 2,
    pool_size: int = 1,
    token_dim: int = 64,
    num_heads: int = 5,
) -> dict[str, torch.Tensor]:
    """A checkpoint with random weights, named and shaped as in the releases."""
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in SIGNS[spatial_dims]:
        shapes[f"{conv}.weight"] = (channels, channels, *[sub_kernel_size] * spatial_dims)
        shapes[f"{conv}.bias"] = (channels,)
    if kind == "se":
        shapes |= {
            "se.fc1.weight": (hidden, channels),
            "se.fc1.bias": (hidden,),
            "se.fc2.weight": (channels, hidden),
            "se.fc2.bias": (channels,),
        }
    else:
        prefix = "transformer" if spatial_dims == 2 else "transformer_sspcab"
        shapes |= {
            f"{prefix}.pos_embedding": (1, channels, token_dim),
            f"{prefix}.projection.weight": (token_dim, pool_size**2),
            f"{prefix}.projection.bias": (token_dim,),
            f"{prefix}.mha.to_qkv.weight": (3 * 64 * num_heads, token_dim),
            f"{prefix}.mha.to_out.0.weight": (token_dim, 64 * num_heads),
            f"{prefix}.mha.to_out.0.bias": (token_dim,),
        }
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def released_forward(state: dict[str, torch.Tensor], x: torch.Tensor, dilation: int) -> torch.Tensor:
    """What the releases compute: every sub-kernel with a bias of its own, ReLU, squeeze-and-excitation or attention."""
    dims = x.dim() - 2
    sub_kernels = {
        tuple(int(sign == "+") for sign in signs): state[f"{conv}.weight"] for conv, signs in SIGNS[dims].items()
    }
    z = sum_of_shifts(x, sub_kernels, [state[f"{conv}.bias"] for conv in SIGNS[dims]], dilation).relu()
    gate = squeeze_and_excitation(state, z) if "se.fc1.weight" in state else released_attention(state, z)
    return z * gate.view(*gate.shape, *[1] * dims)


def squeeze_and_excitation(state: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    hidden = (z.flatten(2).mean(2) @ state["se.fc1.weight"].T + state["se.fc1.bias"]).relu()
    return (hidden @ state["se.fc2.weight"].T + state["se.fc2.bias"]).sigmoid()


def released_attention(state: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """One attention layer, heads of 64 side by side and projected; no norm, no residual, no MLP."""
    own = {name.split(".", 1)[1]: value for name, value in state.items() if name.startswith("transformer")}
    pool_size = math.isqrt(own["projection.weight"].shape[1])
    pooled = (F.adaptive_avg_pool2d if z.dim() == 4 else F.adaptive_avg_pool3d)(z, pool_size).flatten(2)
    tokens = pooled @ own["projection.weight"].T + own["projection.bias"] + own["pos_embedding"]
    queries, keys, values = (tokens @ part.T for part in own["mha.to_qkv.weight"].chunk(3))
    heads = []
    for start in range(0, queries.shape[-1], 64):
        head = slice(start, start + 64)
        scores = queries[..., head] @ keys[..., head].transpose(1, 2) / 8  # √64
        heads.append(scores.softmax(-1) @ values[..., head])
    output = torch.cat(heads, -1) @ own["mha.to_out.0.weight"].T + own["mha.to_out.0.bias"]
    return output.mean(-1).sigmoid()


def assert_reproduces(state, x, dilation, atol=1e-5):
    """Output and MSE loss in training mode, output in evaluation mode."""
    expected = released_forward({name: torch.as_tensor(value) for name, value in state.items()}, x, dilation)
    block = from_released(state, dilation)
    assert block.training
    torch.testing.assert_close(block(x), expected, atol=atol, rtol=0)
    torch.testing.assert_close(block.reconstruction_loss, (expected - x).square().mean(), atol=atol, rtol=0)
    torch.testing.assert_close(block.eval()(x), expected, atol=atol, rtol=0)
    return block


# ---------------------------------------------------------------------------------------------------------------------
# The releases' own figures


@pytest.mark.skipif(
    not GOLDEN, reason=f"no golden cases in the folder beside SSMCTB_DATA ({golden_folder().name}/*.npz)"
)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_case(path):
    with np.load(path) as archive:
        case = {name: archive[name] for name in archive.files}
    state = {name.removeprefix("state/"): value for name, value in case.items() if name.startswith("state/")}
    dilation = int(re.search(r"_d(\d+)_", path.stem).group(1))
    block = from_released(state, dilation)
    x, expected = torch.tensor(case["input"]), torch.tensor(case["output"])
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=0)
    loss = torch.tensor(case["loss"]) if "loss" in case else F.mse_loss(expected, x)
    torch.testing.assert_close(block.reconstruction_loss, loss, atol=1e-5, rtol=0)
    # The plain reading below is held to the same figures, so that it can stand in where the folder is absent.
    plain = released_forward({name: torch.tensor(value) for name, value in state.items()}, x, dilation)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Random weights


@pytest.mark.parametrize(("kind", "spatial_dims"), [("se", 2), ("transformer", 2), ("transformer", 3)])
@pytest.mark.parametrize("sub_kernel_size", [1, 2, 3])
@pytest.mark.parametrize("dilation", [0, 1, 2, 3])
def test_reproduces_the_release(kind, spatial_dims, sub_kernel_size, dilation):
    torch.manual_seed(0)
    state = released_state(kind, spatial_dims, 8, sub_kernel_size)
    block = assert_reproduces(state, 0.5 * random_input(spatial_dims, 8), dilation)
    assert block.convolution.receptive_field == 2 * sub_kernel_size + 2 * dilation + 1


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("num_heads", "token_dim"), [(1, 64), (2, 16), (3, 32), (4, 128), (5, 48), (6, 64)])
def test_reproduces_other_heads_and_token_dims(spatial_dims, num_heads, token_dim):
    torch.manual_seed(1)
    state = released_state(spatial_dims=spatial_dims, channels=4, num_heads=num_heads, token_dim=token_dim)
    assert_reproduces(state, random_input(spatial_dims, 4), 1)


@pytest.mark.parametrize("pool_size", [1, 2, 3, 4, 8])
def test_reproduces_pool_sizes_in_2d(pool_size):
    torch.manual_seed(2)
    assert_reproduces(released_state(channels=4, pool_size=pool_size), torch.randn(2, 4, 11, 14), 1)


@pytest.mark.parametrize(("channels", "hidden"), [(8, 1), (16, 2), (20, 2), (12, 6), (11, 3), (8, 8)])
def test_reproduces_reduction_ratios(channels, hidden):
    torch.manual_seed(3)
    state = released_state("se", channels=channels, hidden=hidden)
    assert_reproduces(state, 0.5 * random_input(2, channels), 1)


@pytest.mark.parametrize(("kind", "spatial_dims"), [("se", 2), ("transformer", 2), ("transformer", 3)])
def test_every_entry_of_the_checkpoint_counts(kind, spatial_dims):
    """A change of one tensor changes the output: none is dropped."""
    torch.manual_seed(4)
    x = random_input(spatial_dims, 4)
    state = released_state(kind, spatial_dims, channels=4)
    expected = from_released(state)(x)
    for name in state:
        changed = {**state, name: state[name] + torch.randn_like(state[name])}
        assert not torch.equal(from_released(changed)(x), expected), name


@pytest.mark.parametrize("kind", ["se", "transformer"])
def test_prefix_of_data_parallel(kind):
    torch.manual_seed(5)
    x, state = random_input(2, 8), released_state(kind)
    expected = from_released(state)(x)
    prefixed = {f"module.{name}": value for name, value in state.items()}
    assert torch.equal(from_released(prefixed)(x), expected)


@pytest.mark.parametrize("kind", ["se", "transformer"])
def test_numpy_values(kind):
    torch.manual_seed(6)
    x, state = random_input(2, 8), released_state(kind)
    arrays = {name: value.numpy() for name, value in state.items()}
    assert torch.equal(from_released(arrays)(x), from_released(state)(x))


def test_parameters_as_values():
    torch.manual_seed(6)
    state = {name: torch.nn.Parameter(value) for name, value in released_state().items()}
    block = from_released(state)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in block.parameters())


@pytest.mark.parametrize(("kind", "spatial_dims"), [("se", 2), ("transformer", 2), ("transformer", 3)])
def test_float64_keeps_its_digits(kind, spatial_dims):
    torch.manual_seed(7)
    state = {
        name: torch.randn(value.shape, dtype=torch.float64) / 4
        for name, value in released_state(kind, spatial_dims, channels=4).items()
    }
    block = assert_reproduces(state, random_input(spatial_dims, 4, dtype=torch.float64), 1, atol=1e-11)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float64}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["se", "transformer"])
def test_checkpoint_on_a_gpu(kind):
    state = released_state(kind)
    block = from_released({name: value.cuda() for name, value in state.items()})
    x = random_input(2, 8)
    torch.testing.assert_close(block(x.cuda()).cpu(), from_released(state)(x), atol=1e-4, rtol=1e-4)


def test_checkpoint_is_left_alone():
    """The block has weights of its own."""
    torch.manual_seed(8)
    state = released_state()
    before = {name: value.clone() for name, value in state.items()}
    block = from_released(state)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize(("kind", "spatial_dims"), [("se", 2), ("transformer", 2), ("transformer", 3)])
def test_script_save(kind, spatial_dims):
    torch.manual_seed(9)
    assert_script_save(from_released(released_state(kind, spatial_dims, 8, 2)), random_input(spatial_dims, 8))


def test_trains_on():
    torch.manual_seed(10)
    block = from_released(released_state())
    block(random_input(2, 8))
    block.reconstruction_loss.backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize(("spatial_dims", "pool_size"), [(2, 1), (2, 3), (3, 1), (3, 2)])
def test_attention_has_a_gate_for_every_channel(spatial_dims, pool_size):
    torch.manual_seed(0)
    attention = ReleasedChannelAttention(spatial_dims, 4, pool_size, token_dim=16, num_heads=2)
    x = random_input(spatial_dims, 4)
    gates = (attention(x) / x).flatten(2)
    assert ((gates > 0) & (gates < 1)).all()
    torch.testing.assert_close(gates, gates[..., :1].expand_as(gates))


# ---------------------------------------------------------------------------------------------------------------------
# Not a checkpoint of a released block


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_missing_keys_are_named(spatial_dims):
    state = released_state(spatial_dims=spatial_dims)
    for name in state:
        rest = {key: value for key, value in state.items() if key != name}
        with pytest.raises(
            ValueError, match=re.escape(name.removeprefix("transformer_sspcab.").removeprefix("transformer."))
        ):
            from_released(rest)


@pytest.mark.parametrize("kind", ["se", "transformer"])
def test_wrong_shapes_are_reported(kind):
    """Of every tensor: one entry more along an axis, or a single one that would broadcast."""
    state = released_state(kind)
    for name, value in state.items():
        for axis in range(value.dim()):
            larger = torch.cat([value, value.narrow(axis, 0, 1)], dim=axis)
            with pytest.raises(ValueError, match=r"shape|size"):
                from_released({**state, name: larger})
        with pytest.raises(ValueError, match=r"shape|size"):
            from_released({**state, name: value[tuple(slice(1) for _ in value.shape)]})


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"fc.weight": torch.zeros(3, 3)},
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(3, 3)},  # as of a ResNet
        {"conv1.weight": torch.zeros(3, 3, 1)},
        {"conv1.weight": torch.zeros(())},
    ],
    ids=["empty", "linear", "resnet", "1d", "scalar"],
)
def test_not_a_block(state):
    with pytest.raises(ValueError, match=r"conv1|conv2"):
        from_released(state)


def test_checkpoint_around_the_state_dict():
    """What training scripts save: the state dict is one of several entries."""
    with pytest.raises(ValueError, match="state_dict"):
        from_released({"state_dict": released_state(), "epoch": 3})


def test_mixed_attentions():
    with pytest.raises(ValueError, match="attention") as error:
        from_released({**released_state("se"), **released_state("transformer")})
    assert "se." in str(error.value)
    assert "transformer." in str(error.value)


def test_no_attention():
    state = {name: value for name, value in released_state().items() if name.startswith("conv")}
    with pytest.raises(ValueError, match=r"'se\.\*', 'transformer\.\*'"):
        from_released(state)


@pytest.mark.parametrize("name", ["se.fc3.weight", "bn.weight", "conv5.weight"])
def test_unknown_keys_are_reported(name):
    with pytest.raises(ValueError, match=r"fc3|bn|conv5"):
        from_released({**released_state("se"), name: torch.zeros(3)})


def test_squeeze_without_hidden_units():
    """Of fewer channels than the reduction ratio: c // 8 = 0."""
    with pytest.raises(ValueError, match=r"fc1|hidden"):
        from_released(released_state("se", channels=4, hidden=0))


@pytest.mark.parametrize("pool_size", [2, 3, 4, 8])
def test_3d_release_works_with_pool_size_1_only(pool_size):
    """Its projection takes pool² values of pool³."""
    with pytest.raises(ValueError, match="projection"):
        from_released(released_state(spatial_dims=3, pool_size=pool_size))


def test_ill_dilation():
    with pytest.raises(ValueError, match=r"dilation .*-1"):
        from_released(released_state(), dilation=-1)
