"""Checks of arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from numbers import Integral
from pathlib import Path
from typing import TypeVar

import torch
from monai.config import PathLike
from torch import Tensor, nn

Value = TypeVar("Value")


def check_spatial_dims(spatial_dims: int) -> None:
    """Accepts 2 and 3 dimensions.

    Args:
        spatial_dims: number of spatial dimensions.

    Raises:
        ValueError: when it is neither 2 nor 3.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")


def check_positive(**sizes: float) -> None:
    """Accepts sizes of at least 1.

    Args:
        sizes: sizes by the name of their argument.

    Raises:
        ValueError: when one is smaller than 1; it is named.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")


def check_choice(choices: Sequence[str], **values: str) -> str:
    """Accepts a value that is one of several.

    Args:
        choices: what it may be.
        values: the value, by the name of its argument or option.

    Returns:
        The value.

    Raises:
        ValueError: when it is something else; it is named.

    Example:
        >>> check_choice(("erase", "avoid"), lesions="erase")
        'erase'
    """
    ((name, value),) = values.items()
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


def check_whole(least: int, **numbers: int) -> None:
    """Accepts whole numbers from a least one on.

    Args:
        least: the least number.
        numbers: numbers by the name of their argument.

    Raises:
        ValueError: when one is smaller or not whole; it is named.
    """
    for name, number in numbers.items():
        if not _is_whole(number):
            raise ValueError(f"{name} must be a whole number, got {number!r}.")
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def check_context(context: Sequence[int], spatial_dims: int = 2) -> tuple[int, ...]:
    """Accepts offsets of context slices.

    Args:
        context: the offsets.
        spatial_dims: number of spatial dimensions of the network.

    Returns:
        The offsets.

    Raises:
        ValueError: when one is not whole, is 0, or comes twice, or the network is one in 3D.

    Example:
        >>> check_context([-2, -1])
        (-2, -1)
    """
    is_list = isinstance(context, Sequence) and not isinstance(context, str)
    if not is_list or not all(map(_is_whole, context)) or len({0, *context}) <= len(context):
        raise ValueError(
            f"context must be whole numbers, the offsets of other slices from a slice, each once and none 0, got "
            f"{context!r}."
        )
    if context and spatial_dims != 2:
        raise ValueError(f"context {list(context)} is of networks in 2D: leave it out in 3D, where windows have depth.")
    return tuple(map(int, context))


def check_image(x: Tensor, spatial_dims: int, channels: int) -> None:
    """Accepts images of a number of dimensions and channels; it can be scripted.

    Args:
        x: tensor to check.
        spatial_dims: number of spatial dimensions.
        channels: number of channels.

    Raises:
        ValueError: when ``x`` is not (batch, channels, height, width[, depth]).
    """
    if x.dim() != spatial_dims + 2 or x.shape[1] != channels:
        raise ValueError(
            f"Expected (batch, {channels}, ...) with {spatial_dims} spatial dimensions, got shape {list(x.shape)}."
        )


def check_shares(**shares: float) -> None:
    """Accepts shares and probabilities, from 0 to 1.

    Args:
        shares: shares by the name of their argument.

    Raises:
        ValueError: when one is outside its range; it is named.
    """
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {share}.")


def check_ranges(bound: float, **ranges: tuple[float, float]) -> None:
    """Accepts ranges of positive numbers.

    Args:
        bound: largest number.
        ranges: least and largest number, by the name of their argument.

    Raises:
        ValueError: when one is not increasing or outside (0, ``bound``]; it is named.
    """
    for name, (least, largest) in ranges.items():
        if not 0 < least <= largest <= bound:
            raise ValueError(f"{name} must be two increasing numbers in (0, {bound}], got {(least, largest)}.")


class Named(dict[str, Value]):
    """Dictionary that says which names there are where one is unknown.

    Args:
        kind: what the names are of.
        content: what they name.

    Example:
        >>> Named("metric", {"auroc": 0.9})["auc"]
        Traceback (most recent call last):
        KeyError: "There is no metric 'auc', only auroc."
    """

    def __init__(self, kind: str, content: Mapping[str, Value]) -> None:
        super().__init__(content)
        self.kind = kind

    def __missing__(self, name: str) -> Value:
        raise KeyError(f"There is no {self.kind} {name!r}, only {', '.join(self) or 'none'}.")


def check_file(path: PathLike, advice: str) -> Path:
    """Accepts a file that exists.

    Args:
        path: the file.
        advice: what to do where it does not exist.

    Returns:
        The file.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: {advice}.")
    return Path(path)


def check_batch(network: nn.Module, shape: Sequence[int]) -> None:
    """Accepts batches that a network can be trained on.

    Args:
        network: the network; a copy of it is tried where the batch holds one sample.
        shape: shape of the smallest batch.

    Raises:
        ValueError: when batch norm finds a single value of a channel to normalise.
    """
    if shape[0] > 1:
        return
    parameter = next(network.parameters())
    with torch.random.fork_rng(), torch.no_grad():
        try:
            deepcopy(network).train()(torch.zeros(*shape, device=parameter.device))
        except ValueError as error:
            raise ValueError(
                f"A batch of one sample of {' x '.join(map(str, shape[2:]))} is too small for the network's batch "
                f"norm: raise --batch_size or --num_samples, or --roi_size ({error})."
            ) from error
