"""Puts a block into a network that knows nothing of it, and takes it out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from monai.networks.blocks import Convolution, PatchEmbed, PatchEmbeddingBlock
from torch import Tensor, nn

from ssmctb_monai.networks.blocks import BlockName, SelfSupervisedBlock, make_block

Network = TypeVar("Network", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PATCH_EMBEDDINGS = (PatchEmbeddingBlock, PatchEmbed)


class InsertedBlock(nn.Module):
    """Runs a block after a module, or in its place.

    In a state dict the module has the keys that it had before, and the block has its own below ``block.``: what was
    saved without block can be loaded with it. A module that the block replaced is neither trained nor saved, but kept
    for `remove_blocks`; it takes the weights that a state dict has for it.

    Args:
        module: module with one tensor in and one tensor out.
        block: shape-preserving module.
        in_place: whether the block runs in place of the module, not after it.
    """

    def __init__(self, module: nn.Module, block: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.module = nn.Identity() if in_place else module
        self.block = block
        self.replaced = [module] if in_place else []  # in a list, so that it is no part of the network
        self.register_state_dict_post_hook(_save_as_module)
        self.register_load_state_dict_pre_hook(_load_as_module)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the module, if it was not replaced, and the block.

        Args:
            x: input of the module.

        Returns:
            Output of the block, of the shape of the module's output.
        """
        return self.block(self.module(x))

    def __getattr__(self, name: str) -> Any:
        # Networks look at their modules, for instance at the patch size of an embedding.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr((self.replaced or [self.module])[0], name)


def _save_as_module(inserted: InsertedBlock, state_dict: MutableMapping[str, Any], prefix: str, metadata: Any) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}module.")]:
        state_dict[prefix + key.removeprefix(f"{prefix}module.")] = state_dict.pop(key)


def _load_as_module(inserted: InsertedBlock, state_dict: MutableMapping[str, Any], prefix: str, *args: Any) -> None:
    keys = [key for key in state_dict if key.startswith(prefix) and not key.startswith(f"{prefix}block.")]
    state = {key.removeprefix(prefix): state_dict.pop(key) for key in keys}
    if inserted.replaced:
        inserted.replaced[0].load_state_dict(state, strict=False)
    else:
        state_dict.update({f"{prefix}module.{key}": value for key, value in state.items()})


class _OnTokens(nn.Module):
    """Runs a block on tokens (batch, tokens, channels), laid out as an image over their grid."""

    def __init__(self, block: nn.Module, grid: Sequence[int]) -> None:
        super().__init__()
        self.block = block
        self.grid = list(grid)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, _, channels = tokens.shape
        image = tokens.transpose(1, 2).reshape([batch, channels] + self.grid)  # noqa: RUF005 (TorchScript)
        return self.block(image).flatten(2).transpose(1, 2)


@dataclass
class _Place:
    """A module that ran on the sample, and what a block there would get."""

    name: str
    module: nn.Module
    shape: torch.Size
    shape_preserving: bool
    grid: list[int] | None = None
    """Of tokens."""

    @property
    def channels(self) -> int:
        return self.shape[1] if self.grid is None else self.shape[2]

    @property
    def spatial_dims(self) -> int:
        return len(self.shape[2:] if self.grid is None else self.grid)

    def __str__(self) -> str:
        return f"{self.name} ({self.channels} channels, {'in its place' if self.shape_preserving else 'after it'})"


def insert_block(
    network: Network,
    block: BlockName | Callable[[int], nn.Module],
    where: str | Sequence[str] = "penultimate",
    *,
    sample: Tensor | tuple[Any, ...],
) -> Network:
    """Puts a block into any network.

    Madan et al., *Self-Supervised Masked Convolutional Transformer Block for Anomaly Detection*, TPAMI 46(1), 2024,
    https://arxiv.org/abs/2209.12148: one block in place of the penultimate convolution; in a transformer, before the
    first transformer layer.

    The network is changed and returned. A block stands in place of a convolution that keeps the shape of its input,
    and directly after any other one. All other weights stay as they are, a state dict of the network without block can
    still be loaded (``strict=False``; only keys of the block are missing), and `remove_blocks` undoes it.

    Args:
        network: the network. It is run on the sample once, in evaluation mode; neither its state nor the random
            numbers that follow change.
        block: ``"sspcab"``, ``"ssmctb"``, or a callable from a number of channels to a shape-preserving module.
        where: the dotted name of a convolution (of PyTorch, or MONAI's ``Convolution`` with its norm and activation)
            or of MONAI's patch embedding, or several of them; or ``"penultimate"``. That is the convolution, in the
            order of execution, before the last one, among those which the last one's input depends on; pointwise
            ones, such as residual projections, do not count. In networks with MONAI's patch embedding (``ViT``,
            ``UNETR``, ``SwinUNETR``, ``MaskedAutoEncoderViT``) it is the grid of embedded patches, which the first
            transformer layer sees next; a class token is no part of it.
        sample: an input of the network, or the tuple of all its arguments, on the network's device.

    Returns:
        The network, with the block on the device, and of the data type, of its neighbours.

    Raises:
        ValueError: when a block cannot stand at a place; the message lists where it can. The network is unchanged.
        TypeError: when ``sample`` is neither a tensor nor a tuple.

    Example:
        >>> unet = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(16, 32, 64), strides=(2, 2))
        >>> unet = insert_block(unet, "ssmctb", sample=torch.zeros(1, 1, 32, 32, 32))
        >>> loss = SelfSupervisedLoss(DiceCELoss(softmax=True), unet)
    """
    if not isinstance(sample, Tensor | tuple):
        raise TypeError(
            f"sample must be a tensor or the tuple of the network's arguments, got {type(sample).__name__}."
        )
    places, penultimate = _find_places(network, (sample,) if isinstance(sample, Tensor) else sample)
    names = [where] if isinstance(where, str) else list(where)
    chosen = [_choose(network, name, places, penultimate) for name in names]
    modules = [place.module for place in chosen]
    if any(module in chain.from_iterable(map(_submodules, modules)) for module in modules) or (
        len(set(modules)) < len(modules)
    ):
        raise ValueError(f"Blocks cannot stand inside each other or twice at one place: {names}.")
    blocks = [_make_block(network, block, place) for place in chosen]
    for place, made in zip(chosen, blocks, strict=True):
        inserted = InsertedBlock(place.module, made, in_place=place.shape_preserving)
        _replace(network, place.module, inserted.train(place.module.training))
    return network


def remove_blocks(network: Network) -> Network:
    """Takes out every block that `insert_block` put in.

    Args:
        network: the network; it is changed.

    Returns:
        The network as it was before, with the weights that it has now. A convolution that a block had replaced is as
        it was then, or as the last state dict said that was loaded with weights for it.

    Example:
        >>> remove_blocks(insert_block(network, "ssmctb", sample=image))
    """
    for inserted in [module for module in network.modules() if isinstance(module, InsertedBlock)]:
        module = _like_neighbour(inserted.replaced[0], inserted) if inserted.replaced else inserted.module
        _replace(network, inserted, module.train(inserted.training))
    return network


def _find_places(network: nn.Module, arguments: tuple[Any, ...]) -> tuple[list[_Place], _Place | None]:
    """Runs the network and notes every place in the order of execution, and the one that is penultimate."""
    taken = {
        part
        for module in network.modules()
        if isinstance(module, InsertedBlock | SelfSupervisedBlock)
        for part in module.modules()
    }
    candidates = (*_CONVOLUTIONS, *_PATCH_EMBEDDINGS, Convolution)
    names = {
        module: name
        for name, module in network.named_modules()
        if isinstance(module, candidates) and module not in taken
    }
    places: dict[nn.Module, _Place] = {}

    def note(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        grid = _token_grid(module, args[0]) if output.dim() == 3 else None
        places.pop(module, None)  # the last run counts
        places[module] = _Place(names[module], module, output.shape, output.shape == args[0].shape, grid)

    _run(network, arguments, dict.fromkeys(names, note))
    embeddings = [place for module, place in places.items() if isinstance(module, _PATCH_EMBEDDINGS)]
    if embeddings:
        return list(places.values()), embeddings[0]
    convolutions = [module for module in places if isinstance(module, _CONVOLUTIONS)]
    reached: list[bool] = []

    def spoil(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output * torch.nan

    def look(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        reached.append(bool(args[0].isnan().any()))

    for module in convolutions[-2::-1]:
        if max(module.kernel_size) > 1:
            _run(network, arguments, {module: spoil, convolutions[-1]: look})
            if reached[-1]:
                return list(places.values()), places[module]
    return list(places.values()), None


def _run(network: nn.Module, arguments: tuple[Any, ...], hooks: Mapping[nn.Module, Callable[..., Any]]) -> None:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            network(*arguments)
    except Exception as error:
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in arguments]
        raise ValueError(f"{type(network).__name__} does not run on the sample {shapes}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def _token_grid(embedding: nn.Module, image: Tensor) -> list[int]:
    projection: Any = embedding.patch_embeddings
    if isinstance(projection, _CONVOLUTIONS):
        patch_size = list(projection.stride)
    else:  # rearranged by einops, then projected
        patch_size = [projection[0].axes_lengths[f"p{axis + 1}"] for axis in range(image.dim() - 2)]
    return [size // patch for size, patch in zip(image.shape[2:], patch_size, strict=True)]


def _choose(network: nn.Module, name: str, places: Sequence[_Place], penultimate: _Place | None) -> _Place:
    possible = (
        f"Places in {type(network).__name__}, in the order of execution: {', '.join(map(str, places)) or 'none'}."
    )
    if name == "penultimate":
        if penultimate is None:
            raise ValueError(f"There is no convolution before the last one, other than pointwise ones. {possible}")
        return penultimate
    modules = dict(network.named_modules(remove_duplicate=False))
    if name not in modules:
        raise ValueError(f"There is no module {name!r}. {possible}")
    if isinstance(modules[name], InsertedBlock):
        raise ValueError(f"There is a block at {name!r} already. {possible}")
    for place in places:
        if place.module is modules[name]:
            return place
    raise ValueError(
        f"A block cannot stand at {name!r} ({type(modules[name]).__name__}): it is no convolution or patch embedding, "
        f"did not run on the sample, or is part of a block. {possible}"
    )


def _submodules(module: nn.Module) -> list[nn.Module]:
    return list(module.modules())[1:]


def _make_block(network: nn.Module, block: BlockName | Callable[[int], nn.Module], place: _Place) -> nn.Module:
    made = make_block(block, place.spatial_dims, place.channels)
    if place.grid is not None:
        made = _OnTokens(made, place.grid)
    made = _like_neighbour(made, place.module, network).eval()
    neighbour = next(chain(made.parameters(), place.module.parameters()))
    with torch.no_grad():
        output = made(neighbour.new_zeros(place.shape))
    if output.shape != place.shape:
        raise ValueError(
            f"A block must keep the shape of its input: at {place.name!r} it makes {tuple(output.shape)} of "
            f"{tuple(place.shape)}."
        )
    return made


def _like_neighbour(module: nn.Module, *neighbours: nn.Module) -> nn.Module:
    """Moves a module to the device and data type of the first parameter of its neighbours."""
    parameter = next(chain.from_iterable(neighbour.parameters() for neighbour in neighbours), None)
    return module if parameter is None else module.to(parameter.device, parameter.dtype)


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    # Some networks, such as DynUNet, hold a module under several names.
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module is old:
            network.set_submodule(name, new)
