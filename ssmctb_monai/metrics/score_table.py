"""Counts of the scores of many cases in common bins: pooled and resampled metrics without the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ssmctb_monai.metrics.score_counts import ScoreCounts

CHUNK = 2**20  # numbers in a batch of resamples; bounds the memory


class ScoreTable:
    """Counts of normal and of anomalous scores per case, in bins that all cases share.

    The bins are so fine that the number of scores of all cases above any threshold errs by 2⁻¹² at most, in either
    class; for some of the cases the error grows as their share of the scores falls. Bins are as many as the scores
    where these are few, and then nothing is lost.

    Args:
        normal: counts of the normal scores of each case.
        anomalous: counts of the anomalous scores of each case.

    Attributes:
        edges: lowest score of each bin, ascending.
        normal: number of normal scores, shape (cases, bins).
        anomalous: number of anomalous scores, of the same shape.
        weights: sum of the weights of the anomalous scores, of the same shape.
    """

    def __init__(self, normal: Sequence[ScoreCounts], anomalous: Sequence[ScoreCounts]) -> None:
        self.edges = np.union1d(ScoreCounts.pooled(normal).edges(), ScoreCounts.pooled(anomalous).edges())
        self.normal = self._binned([part.values for part in normal], [part.counts for part in normal])
        values = [part.values for part in anomalous]
        self.anomalous = self._binned(values, [part.counts for part in anomalous])
        self.weights = self._binned(values, [part.weights for part in anomalous])

    def _binned(self, values: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> np.ndarray:
        table = np.zeros((len(values), max(1, len(self.edges))), dtype=np.float32)
        for row, of_case, numbers in zip(table, values, counts, strict=True):
            row += np.bincount(np.searchsorted(self.edges, of_case, side="right") - 1, numbers, len(row))
        return table

    def apply(
        self,
        metric: Callable[..., np.ndarray],
        case_weights: np.ndarray,
        *totals: np.ndarray,
        weighted: bool = False,
    ) -> np.ndarray:
        """Computes a metric for sets of cases.

        Args:
            metric: function of the normal and the anomalous counts, shape (sets, bins), and of the totals, shape
                (sets, 1).
            case_weights: how often each case counts, shape (sets, cases).
            totals: further numbers of each case to add up, each of shape (cases,).
            weighted: whether anomalous scores count with their weights.

        Returns:
            Metrics, shape (sets,).
        """
        step = max(1, CHUNK // self.normal.shape[1])
        parts = [case_weights[start : start + step].astype(np.float32) for start in range(0, len(case_weights), step)]
        anomalous = self.weights if weighted else self.anomalous
        columns = [total[:, None].astype(np.float32) for total in totals]
        return np.concatenate(
            [metric(part @ self.normal, part @ anomalous, *(part @ column for column in columns)) for part in parts]
        )
