"""A small step of an image towards what a network reconstructs well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def perturbed(detector: Any, x: Tensor, size: float) -> Tensor:
    """Moves every voxel against the gradient of the error of its reconstruction, by the same step.

    Wang et al., *Making reconstruction-based method great again for video anomaly detection*, ICDM 2022,
    https://arxiv.org/abs/2301.12048, after Liang et al., ICLR 2018, https://arxiv.org/abs/1706.02690: x - ε sign(∇ₓ L),
    where L is the squared error of the reconstruction of x. It is to lower the error of normal images more than that of
    others. Gradients are computed in no-gradient and inference mode, too; those of parameters are left alone.

    Args:
        detector: network with a method ``reconstruct`` that gives the first channels of its input, in evaluation mode.
        x: image (batch, channels, height, width[, depth]), with values in [0, 1].
        size: the step ε.

    Returns:
        The image, clipped to [0, 1], of the shape of ``x``. Channels that are 0 throughout, as those of a missing
        modality are, stay so.

    Example:
        >>> network = FuturePredictor(spatial_dims=2, in_channels=3).eval()
        >>> moved = perturbed(network, torch.rand(1, 3, 64, 64), size=0.005)
    """
    with torch.inference_mode(False), torch.enable_grad():
        image = x.detach().clone().requires_grad_()
        reconstruction = detector.reconstruct(image).float()
        error = (reconstruction - image[:, : reconstruction.shape[1]].float()).square().sum()
        (gradient,) = torch.autograd.grad(error, image)
    is_present = (x != 0).flatten(2).any(dim=2).view(*x.shape[:2], *[1] * (x.dim() - 2))
    return (x - size * gradient.sign()).clamp(0, 1) * is_present
