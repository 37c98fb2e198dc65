"""Checks of arguments."""

from __future__ import annotations

from pathlib import Path

from monai.config import PathLike


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
