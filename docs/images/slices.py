"""Slices for the pictures of the docs, and how these are saved."""

from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

from matplotlib.figure import Figure
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd
from PIL import Image
from torch import Tensor

from ssmctb_monai.data import make_demo_dataset
from ssmctb_monai.transforms import BrainMaskd, RobustScaleIntensityd


def cases(spacing: float | None = None) -> Iterator[dict[str, Tensor]]:
    """Loads the demo patients: image, label and brain, the image scaled.

    Args:
        spacing: voxel size in mm, as a default the scan's own.
    """
    keys = ["image", "label"]
    steps = [LoadImaged(keys), EnsureChannelFirstd(keys)]
    steps += [Orientationd(keys, axcodes="RAS", labels=[["L", "R"], ["P", "A"], ["I", "S"]])]
    steps += [Spacingd(keys, [spacing] * 3, mode=["bilinear", "nearest"])] if spacing else []
    load = Compose([*steps, BrainMaskd(), RobustScaleIntensityd()])
    for folder in sorted(path for path in Path(make_demo_dataset()).iterdir() if path.is_dir()):
        case = load({"image": folder / f"{folder.name}_flair.nii.gz", "label": folder / f"{folder.name}_seg.nii.gz"})
        yield {key: case[key].as_tensor() for key in (*keys, "brain")}


def healthy_cases(spacing: float | None = None) -> Iterator[dict[str, Tensor]]:
    """Loads those without a lesion.

    Args:
        spacing: as of `cases`.
    """
    return (case for case in cases(spacing) if not case["label"].any())


def lesion_slice(spacing: float | None = None) -> dict[str, Tensor]:
    """Returns the axial slice with the largest lesion of the first patient who has one.

    Args:
        spacing: as of `cases`.
    """
    case = next(case for case in cases(spacing) if case["label"].any())
    index = int(case["label"].flatten(0, 2).sum(0).argmax())
    return {key: values[..., index] for key, values in case.items()}


def healthy_slices(number: int, spacing: float | None = None) -> list[dict[str, Tensor]]:
    """Returns the middle axial slices of the first of these patients.

    Args:
        number: number of patients.
        spacing: as of `healthy_cases`.
    """
    slices = []
    for case in islice(healthy_cases(spacing), number):
        middle = int(case["brain"][0].any(0).any(0).nonzero().float().median())
        slices.append({key: case[key][..., middle] for key in ("image", "brain")})
    return slices


def save_grey(figure: Figure, name: str, dpi: int) -> None:
    """Saves a picture in few shades of grey, which take little space.

    Args:
        figure: the picture.
        name: name of the file beside this one.
        dpi: dots per inch.
    """
    file = BytesIO()
    figure.savefig(file, dpi=dpi)
    few_colours = Image.open(file).convert("L").quantize(64, dither=Image.Dither.NONE)
    few_colours.save(f"docs/images/{name}.png", optimize=True)
