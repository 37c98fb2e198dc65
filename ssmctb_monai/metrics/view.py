"""One slice of an evaluated case, kept to be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Plane:
    """A plane of a scan as it lies on the page: the first axis of its arrays runs across, the second down.

    Attributes:
        image: image scaled to [0, 1], shape (width, height); ``None`` where there is none.
        scores: anomaly scores of the same shape.
        brain: mask of the voxels whose scores count, of the same shape.
        label: lesion mask of the same shape; ``None`` where there is none.
        sides: letters of the patient's sides at the left, the right, the top and the bottom of the page.
        aspect: height of a voxel in widths of one.
    """

    image: np.ndarray | None
    scores: np.ndarray
    brain: np.ndarray
    label: np.ndarray | None
    sides: str = "RLAP"
    aspect: float = 1.0


@dataclass(frozen=True)
class View:
    """An axial slice of an evaluated case.

    Attributes:
        case_id: name of the case.
        method: name of the method that made the map.
        kind: ``"lesion"`` for the slice with the most lesion voxels, ``"false_alarm"`` for the lesion-free slice with
            the highest score.
        slice: index of the slice along the axial axis, from the feet up.
        score: score of the slice.
        plane: the slice, cut to the brain.
    """

    case_id: str
    method: str
    kind: Literal["lesion", "false_alarm"]
    slice: int
    score: float
    plane: Plane
