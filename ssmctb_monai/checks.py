"""Checks of arguments."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

from monai.config import PathLike
from torch import Tensor

logger = logging.getLogger(__name__)

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


def check_whole(least: int, **numbers: int) -> None:
    """Accepts whole numbers from a least one on.

    Args:
        least: the least number.
        numbers: numbers by the name of their argument.

    Raises:
        ValueError: when one is smaller or not whole; it is named.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise ValueError(f"{name} must be a whole number, got {number!r}.")
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")


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


def settings_file(ckpt_file: PathLike) -> Path:
    """Returns the file beside a checkpoint that holds the settings of its training.

    Args:
        ckpt_file: file of the checkpoint.

    Example:
        >>> settings_file("models/model.pt").name
        'model_settings.json'
    """
    return Path(ckpt_file).with_name(f"{Path(ckpt_file).stem}_settings.json")


def check_checkpoint(ckpt_file: PathLike, settings: Mapping[str, Any], bundle_root: PathLike | None = None) -> Path:
    """Accepts and logs a checkpoint whose training had the same settings, as far as they are known.

    Args:
        ckpt_file: file of the checkpoint.
        settings: settings by their names, as the file beside the checkpoint has them.
        bundle_root: folder of the bundle, to name its checkpoints where there is no such file.

    Returns:
        The file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when settings differ; all of them are named.
    """
    advice = "train first, or name a checkpoint by --ckpt_file"
    if bundle_root is not None:
        advice += f": training writes below {bundle_root}/trained, and {bundle_root}/models/model.pt is shipped"
    checkpoint = check_file(ckpt_file, advice)
    if settings_file(checkpoint).is_file():
        trained = json.loads(settings_file(checkpoint).read_text(encoding="utf-8"))
        given = json.loads(json.dumps(settings))
        if differing := [name for name in given if name in trained and trained[name] != given[name]]:
            wanted = ", ".join(f"{name} {trained[name]}" for name in differing)
            got = ", ".join(f"{name} {given[name]}" for name in differing)
            raise ValueError(
                f"{ckpt_file} was trained with {wanted}, not with {got}: give the overrides of its training."
            )
    logger.info("Using the checkpoint %s.", checkpoint)
    return checkpoint
