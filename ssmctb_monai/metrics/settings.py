"""What an evaluation counts, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ssmctb_monai.checks import check_positive, check_whole

SliceScore = Literal["top_k_mean", "max", "filtered_max", "mean"]
Slices = Literal["brain", "all"]


@dataclass(frozen=True)
class EvaluationSettings:
    """What an evaluation counts, and how.

    Args:
        slice_score: score of a slice: ``"top_k_mean"``, the mean of its ``top_k`` highest voxels in the brain;
            ``"max"``, the highest; ``"filtered_max"``, the highest after a mean filter of 21 x 21 voxels, as in DRAEM;
            ``"mean"``, the mean of all voxels in the brain: of squared errors it ranks slices as their PSNR does.
        top_k: number of voxels of ``"top_k_mean"``, and of the brain voxels that make a slice a brain slice.
        slices: ``"brain"`` counts brain slices only; ``"all"`` counts every slice of the volume, as the SSMCTB paper
            does, those without brain with the lowest possible score.
        slab_depth: depth of a slab in mm; a brain is cut into as many slabs of at least that depth as fit.
        min_lesion_size: number of voxels of the smallest lesion (3D component), and flagged component, that counts as
            such in the metrics of the lesion level.
        box_levels: number of thresholds of the metrics of boxes, in which components of any size count; 0 leaves these
            metrics out, since they take longer than all others: with 32 thresholds 1 s for a brain at 1 mm.
        resamples: number of bootstrap samples of the patients for the intervals.
        seed: seed of these samples.

    Raises:
        ValueError: when an argument is outside its range.
    """

    slice_score: SliceScore = "top_k_mean"
    top_k: int = 20
    slices: Slices = "brain"
    slab_depth: float = 32
    min_lesion_size: int = 10
    box_levels: int = 0
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("slice_score", get_args(SliceScore)), ("slices", get_args(Slices))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        check_positive(slab_depth=self.slab_depth)
        check_whole(1, top_k=self.top_k, min_lesion_size=self.min_lesion_size, resamples=self.resamples)
        check_whole(0, box_levels=self.box_levels, seed=self.seed)
