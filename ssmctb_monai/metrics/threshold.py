"""Thresholds that no lesion label has a part in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from monai.config import PathLike

from ssmctb_monai.checks import check_file
from ssmctb_monai.files import read_json, write_json
from ssmctb_monai.metrics.score_counts import ScoreCounts
from ssmctb_monai.transforms.scores import ScaleScores

FALSE_POSITIVE_RATE = 0.01


@dataclass(frozen=True)
class LabelFreeThreshold:
    """Threshold that lets a stated share of lesion-free voxels pass.

    Attributes:
        value: voxels with at least this score are flagged.
        false_positive_rate: share of the lesion-free voxels that lies at or above it, ``None`` for a threshold from
            elsewhere.
        source: which voxels these were.
        median: their median score, ``None`` where it is not known.

    Raises:
        ValueError: when the threshold is not a finite number.
    """

    value: float
    false_positive_rate: float | None
    source: str
    median: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "false_positive_rate", "median"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError(f"A threshold's {name} must be a finite number, got {number!r}.")

    @classmethod
    def of(
        cls, lesion_free: Sequence[ScoreCounts], false_positive_rate: float = FALSE_POSITIVE_RATE
    ) -> LabelFreeThreshold:
        """Finds the lowest score that at most a share of lesion-free voxels reaches.

        Args:
            lesion_free: scores in lesion-free regions, of each case.
            false_positive_rate: the share, in (0, 1).

        Returns:
            The threshold.

        Raises:
            ValueError: when the share is outside its range, or there is no lesion-free voxel.
        """
        if not 0 < false_positive_rate < 1:
            raise ValueError(f"false_positive_rate must be in (0, 1), got {false_positive_rate}.")
        counts = ScoreCounts.pooled(lesion_free)
        cases = sum(part.total > 0 for part in lesion_free)
        if not counts.total:
            raise ValueError("There is no lesion-free region to take a threshold from: choose a smaller roi_size.")
        return cls(
            counts.threshold(false_positive_rate),
            false_positive_rate,
            f"{counts.total} voxels in lesion-free regions of {cases} cases",
            counts.threshold(0.5),
        )

    @property
    def scale(self) -> ScaleScores:
        """The scale on which this threshold is 0.5."""
        return ScaleScores(self.value, self.median)

    def on_scale(self) -> LabelFreeThreshold:
        """Returns this threshold for maps on its :attr:`scale`."""
        scale = self.scale
        median = None if self.median is None else float(np.interp(self.median, scale.scores, scale.scaled))
        return replace(self, value=ScaleScores.THRESHOLD, median=median)


def save_thresholds(thresholds: Mapping[str, LabelFreeThreshold], path: PathLike) -> None:
    """Writes thresholds as JSON, for :func:`load_thresholds`.

    Args:
        thresholds: threshold of each method.
        path: file to write.
    """
    write_json({name: asdict(value) for name, value in thresholds.items()}, Path(path))


def load_thresholds(path: PathLike) -> dict[str, LabelFreeThreshold]:
    """Reads the thresholds that :func:`save_thresholds` wrote.

    Args:
        path: file.

    Returns:
        Threshold of each method.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file holds no thresholds.
    """
    file = check_file(
        path,
        "training writes it beside the checkpoint; without thresholds (in a bundle: `--thresholds_file none`) metrics "
        "at the threshold are not defined",
    )
    content = read_json(file)
    try:
        return {name: LabelFreeThreshold(**value) for name, value in content.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no thresholds: {error}") from error
