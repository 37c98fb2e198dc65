"""Loss of the tasks on stacks of slices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SSMTLLoss(nn.Module):
    """Error of the hidden slices + cross-entropy of each question.

    Georgescu et al., *Anomaly detection in video via self-supervised and multi-task learning*, CVPR 2021,
    https://arxiv.org/abs/2011.07491, on which SSMTL++ (`SSMTL`) builds: the mean absolute error of what is restored,
    and the cross-entropies, with weights of 1. Each is the mean over the samples that the task was set to, 0 where
    there is none.

    After each call ``parts`` holds the detached summands for logging: ``"restoration"``, ``"reversed"``, ``"skipped"``
    and ``"permuted"``.

    Example:
        >>> network = SSMTL(spatial_dims=3)
        >>> loss = SelfSupervisedLoss(SSMTLLoss(), network)
        >>> loss(network(image), (image_clean, hidden, answers)).backward()
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Tensor] = {}

    def forward(self, prediction: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Computes the loss, in float32.

        Args:
            prediction: restored image (batch, channels, …) and logits (batch, 3, …), as `SSMTL` gives in training.
            target: the image without what was done to it (batch, channels, …); where it was hidden, 1 or 0, of a shape
                that broadcasts to (batch, 1, …); and the answers (batch, 3), 1, 0, or -1 for a question that is not
                asked. As `RandSliceTaskd` gives them.

        Returns:
            Scalar in the graph.

        Raises:
            ValueError: when the restored image has another shape than the image.
        """
        restored, logits = prediction
        image, hidden, answers = target
        if restored.shape != image.shape:
            raise ValueError(f"The restored image has shape {tuple(restored.shape)}, the image {tuple(image.shape)}.")
        with torch.autocast(image.device.type, enabled=False):
            errors = (restored.float() - image.float()).abs().mean(dim=1, keepdim=True)
            asked, answers = (answers >= 0).float(), answers.float().clamp(min=0)
            cells = logits.float().flatten(2)
            entropies = F.binary_cross_entropy_with_logits(
                cells, answers[..., None].expand_as(cells), reduction="none"
            ).mean(dim=2)
            parts = {
                "restoration": _mean(errors, hidden.float().expand_as(errors)),
                **{name: _mean(entropies[:, index], asked[:, index]) for index, name in enumerate(_QUESTIONS)},
            }
        self.parts = {name: part.detach() for name, part in parts.items()}
        return torch.stack(list(parts.values())).sum()


_QUESTIONS = ("reversed", "skipped", "permuted")


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 where nothing has weight."""
    return (values * weights).sum() / weights.sum().clamp(min=1)
