"""How far a reconstruction is from its image, voxel by voxel."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ErrorKind = Literal["l1", "l2", "ssim", "msgms"]


def error_map(reconstruction: Tensor, image: Tensor, kind: str) -> Tensor:
    """Finds how far a reconstruction is from its image at every voxel.

    The kinds, each averaged over the modalities that the image has (`mean_over_modalities`):

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
        errors = mean_at_full_size(gradient_errors(reconstruction, image, "replicate"), list(image.shape[2:]))
    else:
        raise ValueError(f"kind must be l1, l2, ssim or msgms, got {kind}.")
    return mean_over_modalities(errors, image)


def mean_over_modalities(x: Tensor, image: Tensor) -> Tensor:
    """Averages over the channels that are not 0 throughout in an image, or over all where they all are.

    A modality that is missing is 0 throughout, and so is its reconstruction; it would halve the errors of the other
    one. It can be scripted and exported.

    Args:
        x: tensor (batch, channels, height, width[, depth]).
        image: the image, of the same shape.

    Returns:
        Mean, shape (batch, 1, height, width[, depth]).

    Example:
        >>> errors = torch.tensor([[0.4, 0.0], [0.4, 0.2]])[..., None, None]
        >>> mean_over_modalities(errors, image=(errors > 0).float()).flatten()
        tensor([0.4000, 0.3000])
    """
    present = (image != 0).to(x.dtype).amax(dim=[axis + 2 for axis in range(image.dim() - 2)], keepdim=True)
    present = present + (present.sum(dim=1, keepdim=True) == 0).to(x.dtype)
    return (x * present).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True)


def ssim_map(a: Tensor, b: Tensor, value_range: Tensor, window: int = 11, border: str = "replicate") -> Tensor:
    """Computes the structural similarity around every voxel, per channel.

    Wang et al., *Image quality assessment: from error visibility to structural similarity*, IEEE TIP 13(4), 2004,
    https://doi.org/10.1109/TIP.2003.819861: a Gaussian window with σ = 1.5. Unlike MONAI's ``compute_ssim_and_cs`` it
    filters axis by axis, goes up to the border, and can be scripted.

    Args:
        a: image of shape (batch, channels, height, width[, depth]).
        b: image of the same shape.
        value_range: difference of the largest and the smallest possible value; one for all, or of a shape that
            broadcasts to the images.
        window: side of the Gaussian window, odd; the paper's is 11.
        border: ``"replicate"`` repeats the border of the images, ``"zeros"`` takes what lies outside for 0.

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
    a, b = _bordered(a, reach, border) - offset, _bordered(b, reach, border) - offset
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


def gradient_errors(a: Tensor, b: Tensor, border: str) -> list[Tensor]:
    """Computes 1 - gradient magnitude similarity, per channel, at full size and thrice halved.

    Zavrtanik et al., *Reconstruction by inpainting for visual anomaly detection*, Pattern Recognition 112, 2021,
    https://doi.org/10.1016/j.patcog.2020.107706. It can be scripted and exported.

    Args:
        a: image of shape (batch, channels, height, width[, depth]).
        b: image of the same shape.
        border: ``"replicate"`` repeats the border of the images, for maps of their size. With ``"reflect"``, as in
            SSM, the median sees the image reflected at its border, and gradients are those inside alone: maps are
            smaller by 2 along each axis.

    Returns:
        A map for each of the four scales, in [0, 1].

    Raises:
        ValueError: when an image is too small for the scales.
    """
    least = 8 if border == "replicate" else 24
    if min(a.shape[2:]) < least:
        raise ValueError(
            f"msgms halves the image thrice: it takes at least {least} voxels along each axis, got {a.shape[2:]}."
        )
    errors: list[Tensor] = []
    for scale in range(4):
        if scale > 0:
            a = F.avg_pool2d(a, 2) if a.dim() == 4 else F.avg_pool3d(a, 2)
            b = F.avg_pool2d(b, 2) if b.dim() == 4 else F.avg_pool3d(b, 2)
        gradient_a, gradient_b = _gradient_magnitude(a, border), _gradient_magnitude(b, border)
        # 1 - (2 ab + c) / (a² + b² + c), which is 0 to the last digit where a = b
        errors.append((gradient_a - gradient_b).square() / (gradient_a.square() + gradient_b.square() + 0.0026))
    return errors


def mean_at_full_size(maps: list[Tensor], size: list[int]) -> Tensor:
    """Stretches maps of several scales to one size, and averages them.

    Args:
        maps: tensors (batch, channels, height, width[, depth]).
        size: size along each axis.

    Returns:
        Tensor (batch, channels, ``*size``).
    """
    total = torch.zeros(1, device=maps[0].device)
    for each in maps:
        total = total + F.interpolate(each, size, mode="bilinear" if each.dim() == 4 else "trilinear")
    return total / len(maps)


def gaussian_smooth(x: Tensor, sigma: list[float]) -> Tensor:
    """Smooths by a Gaussian, cut at four deviations; the image is mirrored at its borders, as SciPy does.

    It can be scripted and exported, unlike MONAI's filters.

    Args:
        x: image of shape (batch, channels, height, width[, depth]).
        sigma: standard deviation in voxels, along each axis.

    Returns:
        Tensor of the shape of ``x``.
    """
    for index, deviation in enumerate(sigma):
        reach = int(4 * deviation + 0.5)
        size = x.shape[index + 2]
        place = torch.arange(-reach, size + reach, device=x.device) % (2 * size)
        mirrored = x.index_select(index + 2, torch.minimum(place, 2 * size - 1 - place))
        gaussian = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(deviation, 1e-3)) ** 2)
        gaussian = gaussian / gaussian.sum()
        x = torch.zeros_like(x)
        for offset in range(2 * reach + 1):
            x = x + gaussian[offset] * mirrored.narrow(index + 2, offset, size)
    return x


def _gradient_magnitude(x: Tensor, border: str) -> Tensor:
    """Prewitt gradient magnitude of the median: over two voxels along an axis, averaged over three along the others."""
    x = _median(x, border)
    if border == "replicate":
        x = _bordered(x, 1, border)
    average, difference = torch.full((3,), 1 / 3), torch.tensor([-1.0, 0.0, 1.0])
    squares = torch.zeros(1, device=x.device)
    for axis in range(x.dim() - 2):
        kernels = [average] * (x.dim() - 2)
        kernels[axis] = difference
        squares = squares + _filtered(x, kernels).square()
    return squares.clamp_min(1e-12).sqrt()  # the root has no slope at 0


def _median(x: Tensor, border: str) -> Tensor:
    """Median of the 3 voxels an axis around each voxel.

    By Batcher's sorting network of minima and maxima of shifted images, which is ten times faster than to sort the
    windows; ONNX has no median.
    """
    values = [_bordered(x, 1, border)]
    for axis in range(2, x.dim()):
        size = x.shape[axis]
        centre = [value.narrow(axis, 1, size) for value in values]
        sides = [value.narrow(axis, 0, size) for value in values] + [value.narrow(axis, 2, size) for value in values]
        values = centre + sides
    count = len(values)
    merged = 1
    while merged < count:
        step = merged
        while step > 0:
            for start in range(step % merged, count - step, 2 * step):
                for low in range(start, min(start + step, count - step)):
                    high = low + step
                    if low // (2 * merged) == high // (2 * merged):
                        least = torch.minimum(values[low], values[high])
                        values[high] = torch.maximum(values[low], values[high])
                        values[low] = least
            step = step // 2
        merged = 2 * merged
    return values[count // 2]


def _bordered(x: Tensor, width: int, border: str) -> Tensor:
    return F.pad(x, [width] * (2 * (x.dim() - 2)), mode="constant" if border == "zeros" else border)


def _filtered(x: Tensor, kernels: list[Tensor]) -> Tensor:
    """Correlates with one kernel an axis, where they lie inside the image.

    In slices, as MONAI's filters cannot be scripted, and convolutions would be computed in half precision by autocast.
    """
    for index, kernel in enumerate(kernels):
        size = x.shape[index + 2] - len(kernel) + 1
        total = kernel[0] * x.narrow(index + 2, 0, size)
        for offset in range(1, len(kernel)):
            total = total + kernel[offset] * x.narrow(index + 2, offset, size)
        x = total
    return x
