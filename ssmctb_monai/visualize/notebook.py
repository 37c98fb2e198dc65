"""What a notebook shows of anomaly maps: the widget to review them, and a view in 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from monai.config import PathLike

from ssmctb_monai.data.oriented_case import grey_window
from ssmctb_monai.visualize.heatmap import load_heatmap
from ssmctb_monai.visualize.viewer import ViewerScan

if TYPE_CHECKING:
    from ipyniivue import NiiVue

    from ssmctb_monai.visualize.widget import Review


def review(
    cases: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    threshold: float | None = None,
    review_file: PathLike | None = None,
) -> Review:
    """Reviews anomaly maps in a notebook: three linked views, candidates, and verdicts that are saved at once.

    Views are radiological (the patient's right on the left). A click moves the crosshair, the wheel or the arrow keys
    scroll, the curve below the slider shows the score of each axial slice. Candidates are the components over the
    threshold, the highest score first. Every verdict and comment, on a candidate or on the case, goes to the file
    before the widget says *saved*, and the next review of the same maps goes on from there; where a map has changed
    since, its verdicts no longer count.

    Args:
        cases: item or items such as :func:`~ssmctb_monai.visualize.load_heatmap` takes and
            :func:`~ssmctb_monai.visualize.find_maps` finds: files or arrays of image, map and optional label, brain
            mask and reconstruction.
        threshold: threshold to begin with; ``None`` takes that of each item, else the score that one in a hundred
            voxels of the brain exceeds.
        review_file: CSV file of the verdicts; ``None`` takes ``review.csv`` beside the first map, or in the working
            directory where maps are arrays.

    Returns:
        The widget, which a notebook shows when it is the last line of a cell.

    Raises:
        ImportError: the extra ``notebooks`` is not installed.
        TypeError: a case is no dictionary.
        KeyError: a case lacks image or map.
        ValueError: there is no case, two have one name, arrays of one differ in shape, or the review file is none.

    Example:
        >>> review(find_maps("runs/maps", "/path/to/BRATS"))  # doctest: +SKIP
    """
    try:
        from ssmctb_monai.visualize.widget import Review
    except ModuleNotFoundError as error:
        raise _lacking(error) from error
    return Review([cases] if isinstance(cases, Mapping) else list(cases), threshold, review_file)


def view_3d(item: Mapping[str, Any], *, threshold: float | None = None, height: int = 480) -> NiiVue:
    """Shows a scan with its anomaly map in 3D, by NiiVue, which needs WebGL 2 in the browser.

    Args:
        item: as :func:`~ssmctb_monai.visualize.load_heatmap` takes; of several modalities the first is shown.
        threshold: scores from here on are shown; ``None`` takes that of the item, else the score that one in a hundred
            voxels of the brain exceeds.
        height: height of the view in pixels.

    Returns:
        The widget, to be turned with the mouse.

    Raises:
        ImportError: the extra ``notebooks`` is not installed.

    Example:
        >>> view_3d(find_maps("runs/maps", "/path/to/BRATS")[0])  # doctest: +SKIP
    """
    try:
        from ipyniivue import NiiVue, SliceType, Volume
    except ModuleNotFoundError as error:
        raise _lacking(error) from error
    heatmap = load_heatmap(item if threshold is None else {**item, "threshold": threshold})
    lowest = ViewerScan(heatmap).default_threshold
    name, image = next(iter(heatmap.images.items()))
    low, width = grey_window(image, heatmap.brain)
    highest = float(heatmap.anomaly_map[heatmap.peak])
    view = NiiVue(height=height, is_radiological_convention=True)
    view.load_volumes(
        [
            Volume(
                name=f"{name}.nii",
                data=_nifti(np.where(heatmap.brain, image, low), heatmap.affine),
                colormap="gray",
                cal_min=low,
                cal_max=low + width,
            ),
            Volume(
                name="anomaly_map.nii",
                data=_nifti(heatmap.anomaly_map, heatmap.affine),
                colormap="warm",  # inferno begins in black, unseen on gray
                opacity=0.7,
                cal_min=lowest,
                cal_max=max(highest, lowest),
            ),
        ]
    )
    view.set_slice_type(SliceType.RENDER)
    return view


def _nifti(array: np.ndarray, affine: np.ndarray) -> bytes:
    return nib.Nifti1Image(array.astype(np.float32), affine).to_bytes()


def _lacking(error: ModuleNotFoundError) -> ImportError:
    return ImportError(f'{error}. Widgets need an extra: pip install "ssmctb_monai[notebooks]"')
