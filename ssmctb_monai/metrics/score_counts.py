"""Scores of any number of voxels in a memory that hardly grows with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PRECISION = 2**-12  # relative error of the number of scores above any threshold
_NOTHING = np.zeros(0)


@dataclass(frozen=True)
class ScoreCounts:
    """How many scores lie at and above every threshold, and their summed weight, up to a relative error of 2⁻¹².

    Scores are sorted and grouped by the logarithm of their rank from the top (and of the weight above them, where they
    have weights); a group keeps its median and its count. No range of scores is assumed, ties stay together, the 4096
    highest scores stay as they are, and n scores take about 4096 (1 + ln(n / 4096)) groups: 28,000 for the 1.5 million
    voxels of a brain, 35,000 for a whole volume.

    Attributes:
        values: distinct scores, ascending, float32 or float64.
        counts: number of scores that each stands for.
        weights: sum of the weights of these scores; the counts where no weights were given.
    """

    values: np.ndarray
    counts: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, weights: np.ndarray | None = None) -> ScoreCounts:
        """Counts scores.

        Args:
            scores: scores of any shape, infinite ones included; none may be NaN.
            weights: weight of each score.

        Returns:
            The counts.

        Raises:
            ValueError: when a score is NaN.

        Example:
            >>> ScoreCounts.of(np.array([0.5, 0.1, 0.5])).counts
            array([1, 2])
        """
        flat = scores.ravel()
        order = None if weights is None else np.argsort(flat)
        ordered = np.sort(flat) if order is None else flat[order]
        if len(ordered) and np.isnan(ordered[-1]):  # NaN is sorted behind all numbers
            raise ValueError("A score is NaN.")
        first = _changes(ordered)
        counts = np.diff(first, append=len(ordered))
        if weights is None:
            first = first[_groups(counts)]
        else:
            ordered_weights = weights.ravel()[order]
            first = first[_groups(counts, _sums(ordered_weights, first))]
        counts = np.diff(first, append=len(ordered)).astype(np.int32)
        summed = counts if weights is None else _sums(ordered_weights, first)
        return cls(ordered[first + (counts - 1) // 2], counts, summed)

    @classmethod
    def pooled(cls, parts: Sequence[ScoreCounts]) -> ScoreCounts:
        """Adds up the counts of several sets of scores; the error stays the same.

        Args:
            parts: counts.

        Returns:
            Their sum.
        """
        values = np.concatenate([part.values for part in parts] or [_NOTHING])
        order = np.argsort(values, kind="stable")
        counts = np.concatenate([part.counts for part in parts] or [_NOTHING])[order]
        weights = np.concatenate([part.weights for part in parts] or [_NOTHING])[order]
        values = values[order]
        first = _changes(values)
        return cls(values[first], _sums(counts, first), _sums(weights, first))

    @property
    def total(self) -> int:
        """Number of scores."""
        return int(self.counts.sum())

    def threshold(self, share: float) -> float:
        """Finds the lowest number above which, or at which, lies at most a share of the scores.

        Args:
            share: share in (0, 1).

        Returns:
            The lowest such score, or the next number behind the highest score where even this one has more ties.
        """
        allowed = self.values[_above(self.counts) <= share * self.total]
        return float(allowed[0] if len(allowed) else np.nextafter(self.values[-1:], np.inf)[0])

    def edges(self) -> np.ndarray:
        """Returns the lowest value of each group, when these counts are grouped once more by rank."""
        return self.values[_groups(self.counts, self.weights)]


def _groups(*amounts: np.ndarray) -> np.ndarray:
    """Finds the first index of each group of ascending scores from their number and their weight.

    What lies at or above each score of a group has one size, up to the precision. A score that is more than that by
    itself is a group by itself, since the group's median would hide it.
    """
    is_first = np.zeros(len(amounts[0]), dtype=bool)
    is_first[:1] = True
    for amount in amounts:
        above = _above(amount)
        is_first |= amount > PRECISION * above
        is_first[_crossings(above)] = True
    return np.flatnonzero(is_first)


def _crossings(above: np.ndarray) -> np.ndarray:
    """Finds the places where descending numbers fall below the powers of 1 + the precision."""
    if not len(above) or above[0] <= 0:
        return np.zeros(0, dtype=int)
    smallest = above[above > 0][-1]  # weights may be 0
    exponents = np.log([smallest, above[0]]) / np.log1p(PRECISION)
    powers = np.exp(np.arange(np.floor(exponents[0]), np.ceil(exponents[1]) + 1) * np.log1p(PRECISION))
    places = len(above) - np.searchsorted(above[::-1], powers)
    return places[places < len(above)]


def _above(numbers: np.ndarray) -> np.ndarray:
    """Sums of each number and all behind it."""
    return numbers[::-1].cumsum()[::-1]


def _changes(ordered: np.ndarray) -> np.ndarray:
    """Finds the first index of each run of equal numbers."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]]))


def _sums(numbers: np.ndarray, first: np.ndarray) -> np.ndarray:
    wide = np.int64 if numbers.dtype.kind == "i" else np.float64
    return np.add.reduceat(numbers, first, dtype=wide) if len(first) else numbers[:0].astype(wide)
