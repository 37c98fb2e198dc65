"""Figures of anomaly detection as metrics of MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch import Tensor

from ssmctb_monai.metrics.case_statistics import (
    CaseStatistics,
    pixel_auroc,
    pixel_average_precision,
    slice_auroc,
)

Figure = Literal["slice_auroc", "pixel_auroc", "pixel_average_precision"]
_FIGURES: dict[str, Callable[[Sequence[CaseStatistics]], float]] = {
    "slice_auroc": slice_auroc,
    "pixel_auroc": pixel_auroc,
    "pixel_average_precision": pixel_average_precision,
}


class AnomalyMetric(Metric):
    """One figure of anomaly detection over all cases of a run, for MONAI's and ignite's engines.

    Args:
        figure: ``"slice_auroc"``, ``"pixel_auroc"`` or ``"pixel_average_precision"``.
        output_transform: from the engine's output to anomaly maps, labels and brain masks, each a batch or a list of
            tensors of shape (1, …); ``monai.handlers.from_engine([...])`` does it.
        top_k: number of voxels whose mean is a slice's score.

    Raises:
        ValueError: when the figure is unknown.

    Example:
        >>> metric = AnomalyMetric("slice_auroc", from_engine(["pred", "label", "brain"]))
    """

    def __init__(
        self, figure: Figure, output_transform: Callable[[Any], Any] = lambda output: output, top_k: int = 20
    ) -> None:
        if figure not in _FIGURES:
            raise ValueError(f"figure must be one of {sorted(_FIGURES)}, got {figure!r}.")
        self.figure = figure
        self.top_k = top_k
        super().__init__(output_transform, skip_unrolling=True)  # the output is lists of cases, not of batches

    def reset(self) -> None:
        """Forgets all cases."""
        self.cases: list[CaseStatistics] = []

    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]) -> None:
        """Adds cases.

        Args:
            output: anomaly maps, labels and brain masks.
        """
        for anomaly_map, label, brain in zip(*output, strict=True):
            self.cases.append(CaseStatistics.of(anomaly_map, label, brain, self.top_k))

    def compute(self) -> float:
        """Computes the figure.

        Returns:
            The figure; NaN where a class is empty.

        Raises:
            NotComputableError: when there was no case.
        """
        if not self.cases:
            raise NotComputableError("No case was evaluated.")
        return _FIGURES[self.figure](self.cases)
