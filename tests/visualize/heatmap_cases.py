"""What several test files of the heatmaps share: scans whose voxels are known by where they are in the patient."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

SHAPE = (9, 11, 14)
SPACING = (2.0, 3.0, 1.5)  # mm, along the axes of the array
CENTRE = np.array([-12.0, 31.0, 7.0])  # of all scans, RAS in mm
LESION = np.array([3.0, -4.0, 2.0])  # from the centre: right, behind, above

TURNS: dict[str, np.ndarray] = {}
for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
    matrix = np.zeros((3, 3))
    matrix[axes, range(3)] = signs
    TURNS["".join("LPI"[axis] if sign < 0 else "RAS"[axis] for axis, sign in zip(axes, signs, strict=True))] = matrix


def rotation(axis: int, degrees: float) -> np.ndarray:
    """Turns from one of the other two axes towards the next."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix, angle = np.eye(3), np.deg2rad(degrees)
    matrix[[first, second, second, first], [first, second, first, second]] = (
        np.cos(angle),
        np.cos(angle),
        np.sin(angle),
        -np.sin(angle),
    )
    return matrix


OBLIQUE = {
    "rotated": rotation(0, 25) @ rotation(1, -20) @ rotation(2, 30) @ TURNS["ASR"],
    "nearly diagonal": rotation(2, 44) @ TURNS["LAS"],
    "sheared": np.array([[1, 0.3, 0], [0, 1, -0.2], [0.1, 0, 1]]) @ TURNS["PIR"],
}


def affine_of(turn: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Affine of a scan whose middle lies at the centre."""
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING
    affine[:3, 3] = CENTRE - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def places(affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Where each voxel is, from the centre, in mm."""
    return apply_affine(affine, np.stack(np.indices(shape), axis=-1)) - CENTRE


def brain_at(place: np.ndarray) -> np.ndarray:
    """An ellipsoid beside the centre."""
    return ((place - (1, -2, 0.5)) / (6.5, 7.5, 6)) ** 2 @ np.ones(3) < 1


def image_at(place: np.ndarray) -> np.ndarray:
    """Grey values that differ along all axes."""
    return np.where(brain_at(place), 100 + place @ (3, 0.7, -1.3), 0).astype(np.float32)


def score_at(place: np.ndarray) -> np.ndarray:
    """Scores that fall with the distance from the lesion, from 1 on."""
    return np.exp(-(((place - LESION) / 5) ** 2).sum(axis=-1)).astype(np.float32)


def label_at(place: np.ndarray) -> np.ndarray:
    return (((place - LESION) ** 2).sum(axis=-1) < 9).astype(np.uint8)


def make_item(turn: np.ndarray = TURNS["RAS"], **changes: Any) -> dict[str, Any]:
    """A scan in memory."""
    affine = affine_of(turn)
    place = places(affine)
    item = {"image": image_at(place), "anomaly_map": score_at(place), "label": label_at(place), "affine": affine}
    return item | changes
