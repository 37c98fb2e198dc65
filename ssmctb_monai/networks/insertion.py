"""Puts a block into a network that knows nothing of it, and takes it out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from monai.networks.blocks import Convolution, PatchEmbed, PatchEmbeddingBlock
from torch import Tensor, nn

from ssmctb_monai.networks.blocks import NO_BLOCK, Block, SelfSupervisedBlock, make_block

Network = TypeVar("Network", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PATCH_EMBEDDINGS = (PatchEmbeddingBlock, PatchEmbed)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


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
            if name.startswith("__") or "module" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.module, name)


def _save_as_module(inserted: InsertedBlock, state_dict: MutableMapping[str, Any], prefix: str, metadata: Any) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}module.")]:
        state_dict[prefix + key.removeprefix(f"{prefix}module.")] = state_dict.pop(key)


def _load_as_module(
    inserted: InsertedBlock,
    state_dict: MutableMapping[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    errors: list[str],
) -> None:
    keys = [key for key in state_dict if key.startswith(prefix) and not key.startswith(f"{prefix}block.")]
    if not inserted.replaced:
        state_dict.update({f"{prefix}module.{key.removeprefix(prefix)}": state_dict.pop(key) for key in keys})
        return
    (replaced,) = inserted.replaced
    known = replaced.state_dict().keys()
    state = {key.removeprefix(prefix): state_dict.pop(key) for key in keys if key.removeprefix(prefix) in known}
    try:
        replaced.load_state_dict(state, strict=False)
    except RuntimeError as error:
        errors.append(f"At {prefix.rstrip('.')}: {error}")


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
    in_place: bool
    grid: list[int] | None = None
    """Of tokens."""

    @property
    def channels(self) -> int:
        return self.shape[1] if self.grid is None else self.shape[2]

    @property
    def spatial_dims(self) -> int:
        return len(self.shape[2:] if self.grid is None else self.grid)

    def __str__(self) -> str:
        return f"{self.name} ({self.channels} channels, {'in its place' if self.in_place else 'after it'})"


def insert_block(
    network: Network,
    block: Block,
    where: str | Sequence[str] = "penultimate",
    *,
    sample: Tensor | Sequence[int] | tuple[Any, ...],
) -> Network:
    """Puts a block into any network.

    Madan et al., *Self-Supervised Masked Convolutional Transformer Block for Anomaly Detection*, TPAMI 46(1), 2024,
    https://arxiv.org/abs/2209.12148: one block in place of the penultimate convolution; in a transformer, before the
    first transformer layer.

    The network is changed and returned. A block stands in place of a convolution that keeps the shape of its input,
    and directly after any other one. All other weights stay as they are, a state dict of the network without block can
    still be loaded (``strict=False``; only keys of the block are missing), and `remove_blocks` undoes it.

    Args:
        network: the network, in 2D or 3D. Insert before an optimizer takes its parameters, before averaged copies, and
            before `DistributedDataParallel` wraps it. It is run on the sample several times, in evaluation mode; that
            changes neither its state nor the random numbers that follow.
        block: ``"sspcab"``, ``"ssmctb"``, or a callable from a number of channels to a shape-preserving module. With
            ``"none"`` or ``None`` the network is returned as it is.
        where: the dotted name of a convolution (of PyTorch, or MONAI's ``Convolution`` with its norm and activation)
            or of MONAI's patch embedding, or several of them; or ``"penultimate"``. That is the convolution, in the
            order of execution, before the last one, among those which the last one's input depends on; pointwise
            ones, such as residual projections, do not count. In networks with MONAI's patch embedding (``ViT``,
            ``UNETR``, ``SwinUNETR``, ``MaskedAutoEncoderViT``) it is the grid of embedded patches, which the first
            transformer layer sees next; a class token is no part of it.
        sample: shape of an input of the network, such as ``[1, 1, 96, 96]``; or the input itself, or the tuple of all
            the network's arguments, on its device.

    Returns:
        The network, with the block on the device, and of the data type, of its neighbours.

    Raises:
        ValueError: when a block cannot stand at a place; the message lists where it can. Also when the network does
            not run on the sample, does not call the block, or is wrapped. The network is unchanged.
        TypeError: when ``sample`` is neither a shape, nor a tensor, nor a tuple.

    Example:
        >>> unet = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(16, 32, 64), strides=(2, 2))
        >>> unet = insert_block(unet, "ssmctb", sample=[1, 1, 32, 32, 32])
        >>> loss = SelfSupervisedLoss(DiceCELoss(softmax=True), unet)
    """
    if block in NO_BLOCK:
        return network
    arguments = _arguments(network, sample)
    if wrappers := [module for module in network.modules() if isinstance(module, _WRAPPERS)]:
        raise ValueError(
            f"{type(wrappers[0]).__name__} must wrap the network after the block was inserted, not before."
        )
    names = [where] if isinstance(where, str) else list(where)
    places = _find_places(network, arguments)
    chosen = [_choose(network, arguments, name, places) for name in names]
    modules = [place.module for place in chosen]
    inner = {part for module in modules for part in list(module.modules())[1:]}
    if not modules or len(set(modules)) < len(modules) or not inner.isdisjoint(modules):
        raise ValueError(f"where must name places, none of them twice or inside another one, got {names}.")
    # Parameters made in inference mode could not be trained
    with torch.inference_mode(mode=False):
        blocks = {
            place.module: InsertedBlock(place.module, _block_for(network, block, place), place.in_place)
            for place in chosen
        }
    for module, inserted in blocks.items():
        _replace(network, module, inserted.train(module.training))
    try:
        _check_blocks_run(network, arguments, blocks.values())
    except ValueError:
        for module, inserted in blocks.items():
            _replace(network, inserted, module)
        raise
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
        module = _like_neighbour(inserted.replaced[0], inserted, network) if inserted.replaced else inserted.module
        _replace(network, inserted, module.train(inserted.training))
    return network


def _arguments(network: nn.Module, sample: Any) -> tuple[Any, ...]:
    if isinstance(sample, Tensor):
        return (sample,)
    if isinstance(sample, Sequence) and sample and all(isinstance(size, int) for size in sample):
        parameter = next(network.parameters(), torch.empty(()))
        return (parameter.new_zeros(tuple(sample)),)
    if isinstance(sample, tuple):
        return sample
    raise TypeError(
        "sample must be the shape of an input, a tensor, or the tuple of the network's arguments, got "
        f"{type(sample).__name__}: {sample!r:.100}."
    )


def _find_places(network: nn.Module, arguments: tuple[Any, ...]) -> list[_Place]:
    """Runs the network and notes every place, in the order of execution."""
    blocks = [module for module in network.modules() if isinstance(module, InsertedBlock | SelfSupervisedBlock)]
    taken = {part for block in blocks for part in block.modules()}
    names = {
        module: name
        for name, module in network.named_modules()
        if name and isinstance(module, (*_CONVOLUTIONS, *_PATCH_EMBEDDINGS, Convolution))
        if module not in taken and taken.isdisjoint(module.modules())
    }
    places: dict[nn.Module, _Place] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        places.pop(module, None)  # the last run counts
        tokens = isinstance(module, PatchEmbeddingBlock)
        if args and (tokens or output.dim() in (4, 5)):  # no input by its name, and neither 1D nor without batch
            grid = _token_grid(module, args[0]) if tokens else None
            in_place = output.shape == args[0].shape and not _resamples(module)
            places[module] = _Place(names[module], module, output.shape, in_place, grid)

    _run(network, arguments, dict.fromkeys(names, note))
    return list(places.values())


def _penultimate(network: nn.Module, arguments: tuple[Any, ...], places: Sequence[_Place]) -> _Place | None:
    for place in places:
        if isinstance(place.module, _PATCH_EMBEDDINGS):
            return place
    convolutions = [(place, place.module) for place in places if isinstance(place.module, _CONVOLUTIONS)]
    earlier = [(place, module) for place, module in convolutions[:-1] if max(module.kernel_size) > 1]
    if not earlier:
        return None
    _, last = convolutions[-1]
    inputs: list[Tensor] = []  # of the last one

    def keep_input(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(args[0])

    def replace_by_noise(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)  # the network may draw random numbers itself
        return torch.rand(output.shape, generator=generator).to(output)

    _run(network, arguments, {last: keep_input})
    for place, module in reversed(earlier):
        _run(network, arguments, {last: keep_input, module: replace_by_noise})
        if not torch.allclose(inputs[-1], inputs[0]):
            return place
    return None


def _check_blocks_run(network: nn.Module, arguments: tuple[Any, ...], blocks: Iterable[InsertedBlock]) -> None:
    idle = set(blocks)
    _run(network, arguments, {block: lambda module, args, output: idle.discard(module) for block in idle})
    if idle:
        names = [name for name, module in network.named_modules() if module in idle]
        raise ValueError(
            f"{type(network).__name__} holds {', '.join(names)} elsewhere, too, and would not call a block there: name "
            "another place."
        )


def _run(network: nn.Module, arguments: tuple[Any, ...], hooks: Mapping[nn.Module, Callable[..., Any]]) -> None:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
            torch.func.functional_call(network, buffers, arguments)
    except Exception as error:
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in arguments]
        raise ValueError(f"{type(network).__name__} does not run on the sample {shapes}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def _resamples(module: nn.Module) -> bool:
    convolution: Any = module.conv if isinstance(module, Convolution) else module
    return isinstance(convolution, _CONVOLUTIONS) and max(convolution.stride) > 1


def _token_grid(embedding: nn.Module, image: Tensor) -> list[int]:
    projection: Any = embedding.patch_embeddings
    if isinstance(projection, _CONVOLUTIONS):
        patch_size = list(projection.stride)
    else:  # rearranged by einops, then projected
        patch_size = [projection[0].axes_lengths[f"p{axis + 1}"] for axis in range(image.dim() - 2)]
    return [size // patch for size, patch in zip(image.shape[2:], patch_size, strict=True)]


def _choose(network: nn.Module, arguments: tuple[Any, ...], name: str, places: Sequence[_Place]) -> _Place:
    possible = (
        f"Places in {type(network).__name__}, in the order of execution: {', '.join(map(str, places)) or 'none'}."
    )
    modules = dict(network.named_modules(remove_duplicate=False))
    if name == "penultimate":
        if taken := [key for key, module in modules.items() if isinstance(module, InsertedBlock)]:
            raise ValueError(f"There is a block at {taken[0]!r} already: name a place for another one. {possible}")
        if (place := _penultimate(network, arguments, places)) is None:
            raise ValueError(f"There is no convolution before the last one, other than pointwise ones. {possible}")
        return place
    if name not in modules:
        raise ValueError(f"There is no module {name!r}. {possible}")
    if isinstance(modules[name], InsertedBlock):
        raise ValueError(f"There is a block at {name!r} already. {possible}")
    for place in places:
        if place.module is modules[name]:
            return place
    raise ValueError(
        f"A block cannot stand at {name!r} ({type(modules[name]).__name__}): it is no convolution or patch embedding, "
        f"did not run on the sample, or is part of a block or holds one. {possible}"
    )


def _block_for(network: nn.Module, block: Block, place: _Place) -> nn.Module:
    made = make_block(block, place.spatial_dims, place.channels)
    assert made is not None
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
