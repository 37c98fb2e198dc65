"""The contract of a detector, for all of them: classes of `networks.nets`, and what the bundles' configurations build.

New classes and new systems of bundles are found by themselves.
"""

from __future__ import annotations

import copy
import inspect
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from monai.transforms import Compose
from torch import nn

from ssmctb_monai.networks import nets
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, named_blocks
from ssmctb_monai.networks.nets import Detector

BLOCKS = {"none": set(), "sspcab": {SSPCAB}, "ssmctb": {SSMCTB}}
CLASSES = [kind for kind in vars(nets).values() if inspect.isclass(kind) and issubclass(kind, Detector)]


def find_systems() -> list[tuple[Path, ...]]:
    """Each bundle's train.json alone, and with each overlay of another system."""
    systems: list[tuple[Path, ...]] = []
    for train in sorted(Path(__file__).parents[3].glob("bundles/*/configs/train.json")):
        systems.append((train,))
        own_system = json.loads(train.read_text(encoding="utf-8")).get("system", {})
        for path in sorted(train.parent.glob("*.json")):
            keys = json.loads(path.read_text(encoding="utf-8"))
            is_system = not {"system", "network_def"}.isdisjoint(keys) and "run" not in keys
            if is_system and keys.get("system") != own_system:
                systems.append((train, path))
    return systems


SYSTEMS = find_systems()
CONFIGURED = [
    pytest.param(
        files, block, marks=[pytest.mark.process] if files[0].parts[-3] == "brats3d" and block != "ssmctb" else []
    )
    for files in SYSTEMS
    for block in BLOCKS
]


def name_of(value) -> str:
    """Of a parameter, for pytest."""
    if isinstance(value, tuple):
        return f"{value[0].parts[-3]}/{value[-1].stem}"
    return value.__name__ if inspect.isclass(value) else str(value)


@cache
def parser_of(files, block, seed) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    parser.update({"device": "cpu", "block": block})
    torch.manual_seed(seed)
    parser.get_parsed_content("network")
    return parser


def content_of(parser: ConfigParser, name: str):
    return parser.get_parsed_content(f"system#{name}" if name in parser.get("system", {}) else name)


def network_of(files, block="ssmctb", seed=0) -> Detector:
    return parser_of(files, block, seed=seed).get_parsed_content("network")


def size_of(network: nn.Module, odd: bool) -> list[int]:
    """A size off the stride, or one that fits. Transformers take the one that they were made for."""
    for module in network.modules():
        if hasattr(module, "img_size"):
            return list(module.img_size)
    return ([33, 9, 5] if odd else [32, 32, 48])[: network.spatial_dims]


def image_for(network: Detector, odd: bool = True, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, network.in_channels, *size_of(network, odd), generator=generator)


def check_map(network: Detector) -> None:
    """At evaluation: one map in [0, 1] an image, which depends on nothing else, and nothing stays behind."""
    network.eval()
    x = image_for(network)
    before = x.clone()
    scores = network(x)
    assert isinstance(scores, torch.Tensor)
    assert scores.shape == (2, 1, *x.shape[2:])
    assert scores.dtype == torch.float32
    assert 0 <= scores.min() < scores.max() <= 1
    first, again = network(x[:1]), network(x[:1])
    assert torch.equal(again, first)
    torch.testing.assert_close(first, scores[:1], atol=1e-5, rtol=1e-4)
    assert torch.equal(x, before)
    kept = [value for module in network.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert not any(value.requires_grad for value in kept)
    if hasattr(network, "reconstruct"):
        # of a run of slices the slice alone
        assert network.reconstruct(x).shape == (2, getattr(network, "out_channels", x.shape[1]), *x.shape[2:])


# -------------------------------------------------------------------------------------------------------------- systems


def test_every_system_is_found():
    assert len(SYSTEMS) >= 5
    spatial_dims = {network_of(files).spatial_dims for files in SYSTEMS}
    assert spatial_dims == {2, 3}


def test_every_class_is_reached():
    """By two arguments, or by a system of a bundle."""
    reached = {type(network_of(files)) for files in SYSTEMS} | {kind for kind in CLASSES if is_plain(kind)}
    assert set(CLASSES) <= reached | {Detector}, "give it defaults, or add a system to a bundle"


@pytest.mark.parametrize(("files", "block"), CONFIGURED, ids=name_of)
def test_map_of_a_system(files, block):
    network = network_of(files, block)
    assert isinstance(network, Detector)
    assert network.spatial_dims == parser_of(files, block, seed=0).get_parsed_content("spatial_dims")
    assert {type(found) for found in named_blocks(network).values()} == BLOCKS[block]
    check_map(network)


@pytest.mark.parametrize(("files", "block"), CONFIGURED, ids=name_of)
def test_training_output_goes_into_the_loss(files, block):
    """Of a batch as the system's own transforms corrupt it."""
    parser = parser_of(files, block, seed=0)
    network, loss = copy.deepcopy((parser.get_parsed_content("network"), parser.get_parsed_content("loss")))
    corrupt = Compose(content_of(parser, "corruption"))
    images = image_for(network, odd=False)
    samples = [{"image": x, "brain": torch.ones_like(x[:1]), "donors": images} for x in images]
    inputs, targets = content_of(parser, "prepare_batch")(
        list_data_collate([corrupt(sample) for sample in samples]), "cpu"
    )
    total = loss(network.train()(inputs), targets)
    assert total.dim() == 0
    total.backward()
    assert list(loss.parts)[-1] == "block"
    assert (loss.parts["block"] > 0) == bool(BLOCKS[block])
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("files", SYSTEMS, ids=name_of)
def test_state_dict_is_the_whole_detector(files):
    """Also what comes of a training step, such as running statistics."""
    network, other = copy.deepcopy(network_of(files)), copy.deepcopy(network_of(files, seed=1))
    x = image_for(network)
    network.train()(image_for(network, odd=False))
    expected = network.eval()(x)
    assert not torch.equal(other.eval()(x), expected)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("files", SYSTEMS, ids=name_of)
def test_other_dimensions_and_channels_are_refused(files):
    network = copy.deepcopy(network_of(files))
    channels, dims = network.in_channels, network.spatial_dims
    expected = rf"Expected \(batch, {channels}, .*{dims} spatial dimensions, got shape \[2, "
    for shape in ((channels + 1, *[32] * dims), (channels, *[32] * (5 - dims)), (32,) * dims):
        for mode in (True, False):
            with pytest.raises(ValueError, match=expected):
                network.train(mode)(torch.rand(2, *shape))
        if hasattr(network, "reconstruct"):
            with pytest.raises(ValueError, match=expected):
                network.reconstruct(torch.rand(2, *shape))


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("files", SYSTEMS, ids=name_of)
def test_torchscript_takes_other_sizes(files):
    """Where the network is made for one size it is traced, and takes other batches."""
    network = network_of(files).eval()
    x = image_for(network)
    one_size = size_of(network, odd=True) == size_of(network, odd=False)
    exported = torch.jit.trace(network, x) if one_size else torch.jit.script(network)
    for image in (x[:1], image_for(network, odd=False, batch=3)):
        torch.testing.assert_close(exported(image), network(image))


@pytest.mark.process
@pytest.mark.parametrize("files", SYSTEMS, ids=name_of)
def test_torch_export(files):
    network = network_of(files).eval()
    x = image_for(network, batch=1)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


# -------------------------------------------------------------------------------------------------------------- classes


def is_plain(kind: type) -> bool:
    """Whether dimensions and channels are all that it needs."""
    parameters = list(inspect.signature(kind).parameters.values())
    return kind is not Detector and all(parameter.default is not parameter.empty for parameter in parameters[2:])


@pytest.mark.parametrize("kind", CLASSES, ids=name_of)
def test_dimensions_and_channels_come_first(kind):
    assert list(inspect.signature(kind).parameters)[:2] == ["spatial_dims", "in_channels"]


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if is_plain(kind)], ids=name_of)
def test_map_of_several_modalities(kind):  # in 2D; those of one, in 2D and 3D, are the systems'
    torch.manual_seed(0)
    check_map(kind(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 1), "spatial_dims must be 2 or 3, got 4"),
        ((2, 0), "in_channels must be at least 1, got 0"),
        ((2, 1.5), "in_channels must be a whole number, got 1.5"),
        ((2, 1, 0), "stride must be at least 1, got 0"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Detector(*arguments)


def test_what_a_detector_must_define():
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(NotImplementedError, match="Detector must define training_output"):
        Detector(2, 1).train()(x)
    with pytest.raises(NotImplementedError, match="Detector must define anomaly_map"):
        Detector(2, 1).eval()(x)


def test_padding_repeats_the_high_border_and_is_cut():
    detector = Detector(2, 1, stride=4)
    x = torch.arange(6.0).view(1, 1, 2, 3)
    padded = detector.padded(x)
    expected = [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert padded[0, 0].tolist() == expected
    assert torch.equal(detector.cut(padded, x), x)
    assert Detector(3, 1, stride=4).padded(torch.rand(1, 1, 4, 8, 1)).shape == (1, 1, 4, 8, 4)
