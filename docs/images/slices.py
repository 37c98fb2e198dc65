"""Slices for the pictures of the docs."""

from pathlib import Path

from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd
from torch import Tensor

from ssmctb_monai.data import make_demo_dataset
from ssmctb_monai.transforms import BrainMaskd, RobustScaleIntensityd


def healthy_slices(number: int, spacing: float | None = None) -> list[dict[str, Tensor]]:
    """Returns the middle axial slices, cropped to the brain, of the first demo patients without a lesion.

    Args:
        number: number of patients.
        spacing: voxel size in mm, as a default the scan's own.
    """
    keys = ["image", "label"]
    steps = [LoadImaged(keys), EnsureChannelFirstd(keys)]
    steps += [Orientationd(keys, axcodes="RAS", labels=[["L", "R"], ["P", "A"], ["I", "S"]])]
    steps += [Spacingd(keys, [spacing] * 3, mode=["bilinear", "nearest"])] if spacing else []
    load = Compose([*steps, BrainMaskd(), RobustScaleIntensityd()])
    slices = []
    for folder in sorted(path for path in Path(make_demo_dataset()).iterdir() if path.is_dir()):
        case = load({"image": folder / f"{folder.name}_flair.nii.gz", "label": folder / f"{folder.name}_seg.nii.gz"})
        if not case["label"].any():
            middle = int(case["brain"][0].any(0).any(0).nonzero().float().median())
            slices.append({key: case[key].as_tensor()[..., middle] for key in ("image", "brain")})
        if len(slices) == number:
            break
    return slices
