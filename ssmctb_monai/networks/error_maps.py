"""How far a reconstruction is from its image, voxel by voxel."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ErrorKind = Literal["l1", "l2", "ssim", "msgms"]


def error_map(reconstruction: Tensor, image: Tensor, kind: str) -> Tensor:
    """Finds how far a reconstruction is from its image at every voxel.

    The kinds, each averaged over channels:

    - ``"l1"``: absolute difference.
    - ``"l2"``: squared difference.
    - ``"ssim"``: (1 - SSIM) / 2, of a Gaussian window of 11 voxels an axis with σ = 1.5.
    - ``"msgms"``: 1 - multi-scale gradient magnitude similarity, which compares edges, neither brightness nor single
      voxels: Prewitt gradient magnitudes after a median filter of 3 voxels an axis, at full size and thrice halved;
      the four maps are resized to full size and averaged. Zavrtanik et al., *Reconstruction by inpainting for visual
      anomaly detection*, Pattern Recognition 112, 2021, https://doi.org/10.1016/j.patcog.2020.107706.

    Borders are replicated. Computed in float32, also under autocast; it can be scripted and exported.

    Args:
        reconstruction: of the shape of ``image``.
        image: image of shape (batch, channels, height, width[, depth]), with values in [0, 1]. For ``"msgms"`` at least
            8 voxels along each axis.
        kind: ``"l1"``, ``"l2"``, ``"ssim"`` or ``"msgms"``.

    Returns:
        The map, shape (batch, 1, height, width[, depth]), float32, at least 0. For images in [0, 1] at most 1.

    Raises:
        ValueError: when the shapes differ, the image is too small, or ``kind`` is unknown.

    Example:
        >>> error_map(torch.zeros(1, 2, 16, 16), torch.ones(1, 2, 16, 16), "l1").unique()
        tensor([1.])
    """
    if reconstruction.shape != image.shape:
        raise ValueError(f"The reconstruction {reconstruction.shape} must have the shape of the image {image.shape}.")
    reconstruction, image = reconstruction.float(), image.float()
    if kind == "l1":
        errors = (reconstruction - image).abs()
    elif kind == "l2":
        errors = (reconstruction - image).square()
    elif kind == "ssim":
        errors = (1 - ssim_map(reconstruction, image, torch.ones(()))).clamp_min(0) / 2
    elif kind == "msgms":
        errors = _msgms_error(reconstruction, image)
    else:
        raise ValueError(f"kind must be l1, l2, ssim or msgms, got {kind}.")
    return errors.mean(dim=1, keepdim=True)


def ssim_map(a: Tensor, b: Tensor, value_range: Tensor, window: int = 11) -> Tensor:
    """Computes the structural similarity around every voxel, per channel.

    Wang et al., *Image quality assessment: from error visibility to structural similarity*, IEEE TIP 13(4), 2004,
    https://doi.org/10.1109/TIP.2003.819861: a Gaussian window with σ = 1.5; the border is replicated. Unlike MONAI's
    ``compute_ssim_and_cs`` it filters axis by axis, and can be scripted.

    Args:
        a: image of shape (batch, channels, height, width[, depth]).
        b: image of the same shape.
        value_range: difference of the largest and the smallest possible value; one for all, or of a shape that
            broadcasts to the images.
        window: side of the Gaussian window, odd; the paper's is 11.

    Returns:
        SSIM in [-1, 1], of the shape of the images.

    Example:
        >>> ssim_map(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.tensor(1.0)).unique()
        tensor([1.])
    """
    reach = window // 2
    gaussian = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=a.dtype) / 1.5) ** 2)
    windows = [gaussian / gaussian.sum()] * (a.dim() - 2)
    # Without the offset that both share, small variances do not drown in the squares of large values.
    offset = b.mean(dim=[axis + 2 for axis in range(b.dim() - 2)], keepdim=True)
    a, b = a - offset, b - offset
    mean_a, mean_b = _filtered(a, windows), _filtered(b, windows)
    variances = _filtered(a.square() + b.square(), windows) - (mean_a.square() + mean_b.square())
    covariance = _filtered(a * b, windows) - mean_a * mean_b
    mean_a, mean_b = mean_a + offset, mean_b + offset
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    return (
        (2 * mean_a * mean_b + c1)
        / (mean_a.square() + mean_b.square() + c1)
        * (2 * covariance + c2)
        / (variances.clamp_min(0) + c2)
    )


def _msgms_error(a: Tensor, b: Tensor) -> Tensor:
    """1 - multi-scale gradient magnitude similarity at every voxel, per channel."""
    size = a.shape[2:]
    if min(size) < 8:
        raise ValueError(f"msgms halves the image thrice: it takes at least 8 voxels along each axis, got {size}.")
    total = torch.zeros_like(a)
    for scale in range(4):
        if scale > 0:
            a = F.avg_pool2d(a, 2) if a.dim() == 4 else F.avg_pool3d(a, 2)
            b = F.avg_pool2d(b, 2) if b.dim() == 4 else F.avg_pool3d(b, 2)
        gradient_a, gradient_b = _gradient_magnitude(_median(a)), _gradient_magnitude(_median(b))
        # 1 - (2 ab + c) / (a² + b² + c), which is 0 to the last digit where a = b
        error = (gradient_a - gradient_b).square() / (gradient_a.square() + gradient_b.square() + 0.0026)
        total += F.interpolate(error, size, mode="bilinear" if a.dim() == 4 else "trilinear")
    return total / 4


def _gradient_magnitude(x: Tensor) -> Tensor:
    """Prewitt gradient magnitude: differences over two voxels along an axis, averaged over three along the others."""
    average, difference = torch.full((3,), 1 / 3), torch.tensor([-1.0, 0.0, 1.0])
    squares = torch.zeros_like(x)
    for axis in range(x.dim() - 2):
        kernels = [average] * (x.dim() - 2)
        kernels[axis] = difference
        squares += _filtered(x, kernels).square()
    return squares.sqrt()


def _median(x: Tensor) -> Tensor:
    """Median of the 3 voxels an axis around each voxel."""
    spatial_dims = x.dim() - 2
    windows = F.pad(x, [1] * (2 * spatial_dims), mode="replicate")
    for axis in range(spatial_dims):
        windows = windows.unfold(axis + 2, 3, 1)
    values = windows.flatten(-spatial_dims)
    return values.sort(dim=-1)[0][..., values.shape[-1] // 2]  # ONNX has no median


def _filtered(x: Tensor, kernels: list[Tensor]) -> Tensor:
    """Correlates with one kernel an axis, all of one odd width.

    In slices, as MONAI's filters cannot be scripted, and convolutions would be computed in half precision by autocast.
    """
    width = len(kernels[0])
    x = F.pad(x, [width // 2] * (2 * len(kernels)), mode="replicate")
    for index, kernel in enumerate(kernels):
        size = x.shape[index + 2] - width + 1
        total = kernel[0] * x.narrow(index + 2, 0, size)
        for offset in range(1, width):
            total += kernel[offset] * x.narrow(index + 2, offset, size)
        x = total
    return x
