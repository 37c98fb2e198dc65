"""The rows of the accuracy tables: which bundle, in which configuration, on which data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BLOCKS = {"none": "no block", "sspcab": "SSPCAB", "ssmctb": "SSMCTB"}
MODALITIES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}
DATA = {"brats": "BRATS", "lgg": "LGG"}


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Args:
        title: what it shows, in the table.
        data: data set, of `DATA`.
        bundle: name of the bundle.
        overrides: ids of the bundle's train.json, in training and evaluation; those with a ``#`` in training alone.
        modalities: modalities to train and test on; the first one is the baseline.
        reference: row that is subtracted, on the same folds and seeds.
    """

    title: str
    data: str
    bundle: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    modalities: tuple[str, ...] = ("flair",)
    reference: str | None = None

    @property
    def baseline(self) -> str:
        """Name of the method that the bundle's evaluation compares with."""
        return f"baseline_{self.modalities[0]}"

    @property
    def group(self) -> str:
        """Data and modalities, which rows must share to be compared."""
        return f"{DATA[self.data]}, {' + '.join(MODALITIES[name] for name in self.modalities)}"


# Heads; 20 to 80 slices, some mm apart though the files say 1 mm
LGG = {"background": "skull", "spacing": [2.0, 2.0, 1.0], "smoothing": [3.0, 3.0, 0.5], "iterations": 800}

ROWS = {
    **{
        f"brats{dims}d-{block}": Row(
            f"{dims}D, {title}" + ("" if block == "none" else " in both sub-networks"),
            "brats",
            f"brats{dims}d",
            {"block": block, "block_in": "both"},
            reference=None if block == "none" else f"brats{dims}d-none",
        )
        for dims in (2, 3)
        for block, title in BLOCKS.items()
    },
    **{
        f"brats{dims}d": Row(
            f"{dims}D, as shipped: SSMCTB in the reconstructive one",
            "brats",
            f"brats{dims}d",
            reference=f"brats{dims}d-none",
        )
        for dims in (2, 3)
    },
    "brats2d-discriminative": Row(
        "2D, SSMCTB in the discriminative one",
        "brats",
        "brats2d",
        {"block_in": "discriminative"},
        reference="brats2d-none",
    ),
    "brats2d-unweighted": Row(
        "2D, SSMCTB in both, λ = 0",
        "brats",
        "brats2d",
        {"block_in": "both", "block_weight": 0},
        reference="brats2d-none",
    ),
    "brats2d-t1ce": Row("2D, as shipped", "brats", "brats2d", modalities=("flair", "t1ce")),
    "lgg2d": Row("2D, SSMCTB in the reconstructive one, brain cut out", "lgg", "brats2d", LGG),
}
