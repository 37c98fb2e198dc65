"""The evaluation as a metric of MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric, MetricsLambda
from torch import Tensor

from ssmctb_monai.metrics.definitions import METRICS
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.threshold import FALSE_POSITIVE_RATE, LabelFreeThreshold


class AnomalyMetric(Metric):
    """Evaluation of all cases of a run, for MONAI's and ignite's engines, on one process or several.

    Cases are counted once, whatever the number of metrics: :meth:`select` makes a metric of each that shares them.

    Args:
        methods: names of the methods, in the order of their maps.
        output_transform: from the engine's output to a batch or a list of tensors of shape (1, …) each of the methods'
            anomaly maps, labels, brain masks and, where label-free thresholds are asked for, lesion-free regions, then
            a list of names where cases have any; ``monai.handlers.from_engine([...])`` does it.
        settings: what to count.
        thresholds: threshold of each method, by its name; metrics at the threshold are NaN without.

    A case that a sampler gives to two processes, so that each has as many, counts once where cases have names, else
    twice, as in MONAI's metrics.

    Example:
        >>> metric = AnomalyMetric(["model"], from_engine(["pred", "label", "brain"]))
        >>> evaluator = SupervisedEvaluator(..., key_val_metric={"pixel_auroc": metric.select("model", "pixel_auroc")})
    """

    def __init__(
        self,
        methods: Sequence[str] = ("model",),
        output_transform: Callable[[Any], Any] = lambda output: output,
        settings: EvaluationSettings | None = None,
        thresholds: Mapping[str, float | LabelFreeThreshold] | None = None,
    ) -> None:
        self.methods = list(methods)
        self.settings = settings
        self.thresholds = thresholds
        super().__init__(output_transform, skip_unrolling=True)  # the output is lists of cases, not of batches

    def reset(self) -> None:
        """Forgets all cases."""
        self.evaluation = AnomalyEvaluation(self.thresholds, self.settings)
        self._gathered: AnomalyEvaluation | None = None

    def update(self, output: Sequence[Sequence[Tensor | str]]) -> None:
        """Adds cases.

        Args:
            output: anomaly maps of each method, labels, brain masks and, if any, lesion-free regions and names.
        """
        self._gathered = None
        for case in zip(*output, strict=True):
            names = [item for item in case if isinstance(item, str)]
            tensors = [item for item in case if not isinstance(item, str)]
            maps = dict(zip(self.methods, tensors, strict=False))
            label, brain, *lesion_free = tensors[len(maps) :]
            self.evaluation.add(
                names[0] if names else f"process {idist.get_rank()}, case {len(self.evaluation.cases) + 1}",
                maps,
                label,
                brain,
                lesion_free=lesion_free[0] if lesion_free else None,
            )

    def compute(self) -> AnomalyEvaluation:
        """Returns the evaluation of the cases of all processes.

        Raises:
            NotComputableError: when there was no case.
        """
        if self._gathered is None:
            self._gathered = self.evaluation.gather()
        if not self._gathered.cases:
            raise NotComputableError("No case was evaluated.")
        return self._gathered

    def label_free_thresholds(self, false_positive_rate: float = FALSE_POSITIVE_RATE) -> dict[str, LabelFreeThreshold]:
        """Finds the threshold of each method from the lesion-free regions of the cases.

        Args:
            false_positive_rate: share of their voxels that may be flagged, in (0, 1).

        Returns:
            Threshold of each method.

        Raises:
            ValueError: when no case has a lesion-free region.
        """
        return self.compute().label_free_thresholds(false_positive_rate)

    def select(self, method: str, name: str) -> MetricsLambda:
        """Makes an ignite metric of one of them.

        Args:
            method: name of the method.
            name: name of the metric, of `METRICS`.

        Returns:
            Metric; NaN where the metric is not defined.

        Raises:
            ValueError: when method or metric are unknown.
        """
        if name not in METRICS or method not in self.methods:
            raise ValueError(
                f"Choose a method of {self.methods} and a metric of {list(METRICS)}; got {method}, {name}."
            )
        return MetricsLambda(lambda evaluation: evaluation.value(method, name), self)
