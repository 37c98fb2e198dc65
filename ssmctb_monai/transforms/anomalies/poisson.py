"""Poisson image editing by sine transforms, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple_rep
from torch import Tensor

Gradients = Literal["source", "mixed", "interpolated"]


def solve_poisson(divergence: Tensor, spacing: float | Sequence[float] = 1.0) -> Tensor:
    """Solves Poisson's equation Δu = f on a box, with u = 0 on the frame around it.

    The discrete Laplacian Σ (u(p - e) - 2 u(p) + u(p + e)) / h² is diagonal in the sine transform (DST-I), here a
    product with one small matrix per axis, so that the solution is exact on any device, without iterations.

    Args:
        divergence: f, shape (channels, height, width[, depth]).
        spacing: distance h of two voxels, one for all axes or one per axis.

    Returns:
        u, of the same shape and type.

    Example:
        >>> solve_poisson(torch.full((1, 1, 3), -1.0))  # -4 u(0) + u(1) = u(0) - 4 u(1) + u(2) = -1
        tensor([[[0.3571, 0.4286, 0.3571]]])
    """
    dims = divergence.dim() - 1
    transforms = [_sine_transform(size, divergence.device, divergence.dtype) for size in divergence.shape[1:]]
    total = torch.zeros((), device=divergence.device, dtype=divergence.dtype)
    for axis, ((_, eigenvalues), step) in enumerate(zip(transforms, ensure_tuple_rep(spacing, dims), strict=True)):
        total = total + (eigenvalues / step**2).reshape([-1 if other == axis else 1 for other in range(dims)])

    def transformed(values: Tensor) -> Tensor:
        for sines, _ in reversed(transforms):  # each becomes the first axis, so that every step is one matrix product
            values = (sines @ values.flatten(end_dim=-2).T).unflatten(1, values.shape[:-1])
        return values.movedim(-1, 0)

    with torch.autocast(divergence.device.type, enabled=False):
        return transformed(transformed(divergence) / total)


@lru_cache(maxsize=1024)  # small, and the same sizes come again and again
def _sine_transform(size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Orthonormal sines, a matrix that is its own inverse, and their eigenvalues of the second difference."""
    angles = torch.arange(1, size + 1, dtype=torch.float64) * torch.pi / (size + 1)
    sines = torch.sin(angles[:, None] * torch.arange(1, size + 1)) * (2 / (size + 1)) ** 0.5
    return sines.to(device, dtype), (2 * torch.cos(angles) - 2).to(device, dtype)


def poisson_blend(
    destination: Tensor,
    source: Tensor,
    mask: Tensor,
    gradients: Gradients = "source",
    factor: float = 1.0,
    spacing: float | Sequence[float] = 1.0,
    inside: Tensor | None = None,
) -> Tensor:
    """Puts the gradients of a source into an image, so that no offset is left between it and its surroundings.

    Pérez et al., *Poisson image editing*, ACM Transactions on Graphics 22(3), 2003,
    https://doi.org/10.1145/882262.882269: the image whose gradients are as close as possible to a guidance field, that
    of the source in the mask and that of the image elsewhere. The outermost voxels stay as they are; between them and
    the mask the image follows smoothly, so that a box around the mask is all that changes.

    Args:
        destination: image, shape (channels, height, width[, depth]), at least 3 voxels along each axis.
        source: image of the same shape.
        mask: where the source's gradients count, shape (height, width[, depth]); each voxel stands for the steps from
            it to its next neighbours.
        gradients: ``"source"``: those of the source; ``"mixed"``: the larger of both at each step, by which structures
            of the image shine through; ``"interpolated"``: the larger of ``factor`` times those of the source and
            1 - ``factor`` times those of the image (Tan et al., *Detecting outliers with Poisson image interpolation*,
            MICCAI 2021, https://arxiv.org/abs/2107.02622).
        factor: share of the source, in [0, 1]; of the change of the gradients, unless these are ``"interpolated"``.
        spacing: size of a voxel, one for all axes or one per axis.
        inside: where the image may change, shape (height, width[, depth]); no step across its border counts.

    Returns:
        Image of the same shape, of at least single precision.

    Raises:
        ValueError: when shapes do not fit together, or the image is too small.

    Example:
        >>> poisson_blend(image, image + 0.3, mask)  # the image itself: its gradients are the same
    """
    dims = destination.dim() - 1
    if source.shape != destination.shape or mask.shape != destination.shape[1:]:
        raise ValueError(
            f"The source has shape {tuple(source.shape)}, the mask {tuple(mask.shape)}, but the destination "
            f"{tuple(destination.shape)}: give images of the same shape and a mask without channels."
        )
    if min(mask.shape) < 3:
        raise ValueError(f"The images must have at least 3 voxels along each axis, got {tuple(mask.shape)}.")
    destination, source = (image.to(torch.promote_types(image.dtype, torch.float32)) for image in (destination, source))
    counted = mask > 0
    change = torch.zeros((), device=destination.device)  # divergence of the guidance field, minus that of the image
    for axis, step in enumerate(ensure_tuple_rep(spacing, dims)):
        size = mask.shape[axis] - 1
        used = counted.narrow(axis, 0, size)
        if inside is not None:
            used = used & (inside.narrow(axis, 0, size) > 0) & (inside.narrow(axis, 1, size) > 0)
        image_step, source_step = destination.diff(dim=axis + 1), source.diff(dim=axis + 1)
        if gradients == "interpolated":
            image_share, source_share = (1 - factor) * image_step, factor * source_step
            guidance = torch.where(image_share.abs() > source_share.abs(), image_share, source_share)
            field = guidance - image_step
        else:
            field = factor * (source_step - image_step)
            if gradients == "mixed":
                used = used & (source_step.abs() > image_step.abs())
        field = torch.where(used, field, 0) / step**2
        for other in range(dims):
            if other != axis:
                field = field.narrow(other + 1, 1, mask.shape[other] - 2)
        change = change + field.diff(dim=axis + 1)
    return destination + F.pad(solve_poisson(change, spacing), [1] * (2 * dims))
