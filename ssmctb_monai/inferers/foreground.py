"""Inference where there is something to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor


class ForegroundInferer(Inferer):
    """Runs a sliding-window or slice inferer on the windows with foreground only; the others get 0.

    `RobustScaleIntensityd` sets what lies outside the brain to 0, so that the windows left out are those without brain.

    Args:
        inferer: inferer that calls the network with batches of windows.

    Example:
        >>> inferer = ForegroundInferer(SlidingWindowInferer(roi_size=(32, 32, 32), overlap=0.5, mode="gaussian"))
    """

    def __init__(self, inferer: Inferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Runs the inferer.

        Args:
            inputs: image of shape (batch, channels, height, width[, depth]), 0 in the background.
            network: network that gives one tensor for a batch of windows, sample by sample.
            args: ignored.
            kwargs: ignored: MONAI Deploy hands over all tensors of a prepared case, and networks take the image alone.

        Returns:
            What the inferer returns.
        """
        blank: Tensor | None = None  # the output for one window

        def on_foreground(windows: Tensor) -> Tensor:
            nonlocal blank
            has_foreground = windows.flatten(1).any(dim=1)
            if has_foreground.any():
                predicted = network(windows[has_foreground])
                blank = torch.zeros_like(predicted[:1])
                output = blank.repeat_interleave(len(windows), dim=0)
                output[has_foreground] = predicted
                return output
            if blank is None:  # only the network knows the shape
                blank = torch.zeros_like(network(windows[:1]))
            return blank.repeat_interleave(len(windows), dim=0)

        return self.inferer(inputs, on_foreground)
