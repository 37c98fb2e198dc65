"""One slice of an evaluated case, kept to be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class View:
    """An axial slice with its anomaly map, in RAS orientation: first axis to the right, second to the front.

    Attributes:
        case_id: name of the case.
        method: name of the method that made the map.
        kind: ``"lesion"`` for the slice with the most lesion voxels, ``"false_alarm"`` for the lesion-free slice with
            the highest score.
        slice: index of the slice along the axial axis, from the feet up.
        score: score of the slice.
        image: image scaled to [0, 1], shape (width, height); ``None`` where there was no image.
        anomaly_map: scores of the same shape.
        label: lesion mask of the same shape.
        brain: brain mask of the same shape.
    """

    case_id: str
    method: str
    kind: Literal["lesion", "false_alarm"]
    slice: int
    score: float
    image: np.ndarray | None
    anomaly_map: np.ndarray
    label: np.ndarray
    brain: np.ndarray
