"""Checks of the arguments that networks and blocks share."""

from __future__ import annotations


def check_spatial_dims(spatial_dims: int) -> None:
    """Accepts 2 and 3 dimensions.

    Args:
        spatial_dims: number of spatial dimensions.

    Raises:
        ValueError: when it is neither 2 nor 3.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")


def check_positive(**sizes: int) -> None:
    """Accepts sizes of at least 1.

    Args:
        sizes: sizes by the name of their argument.

    Raises:
        ValueError: when one is smaller than 1; it is named.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
