"""What a notebook shows of anomaly maps: the widget to review them, and a view in 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from monai.config import PathLike

from ssmctb_monai.data.oriented_case import grey_window
from ssmctb_monai.visualize.heatmap import case_names, check_item, load_heatmap, map_file
from ssmctb_monai.visualize.viewer import ViewerScan

if TYPE_CHECKING:
    from ipyniivue import NiiVue, Volume
    from ipywidgets import HBox

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
    since, its verdicts no longer count. A brush corrects the outlines of candidates; the mask goes to
    ``corrected_masks/CASE.nii.gz`` beside the map, with its geometry. ``?`` lists keys and gestures.

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


def compare(
    methods: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    threshold: float | None = None,
) -> HBox:
    """Reviews the maps of several methods side by side: the same case in all, their crosshairs at one position.

    Each method has its own threshold, candidates and file of verdicts, as in :func:`review`.

    Args:
        methods: items of each method, such as :func:`~ssmctb_monai.visualize.find_maps` finds, by its name. Cases that
            not all methods have are left out.
        threshold: as of :func:`review`, for all.

    Returns:
        The reviews, as ``children`` side by side, to be shown as the last line of a cell.

    Raises:
        ImportError: the extra ``notebooks`` is not installed.
        ValueError: there are fewer than two methods, they have no case in common, two cases of one have one name, or
            two methods would write to one file.

    Example:
        >>> compare({"2D": find_maps("runs/2d", "BraTS"), "3D": find_maps("runs/3d", "BraTS")})  # doctest: +SKIP
    """
    try:
        from ipywidgets import HBox, Layout, jslink

        from ssmctb_monai.visualize.widget import REVIEW_FILE, Review
    except ModuleNotFoundError as error:
        raise _lacking(error) from error
    if len(methods) < 2:
        raise ValueError(f"Methods are compared when there are at least two, got {', '.join(methods) or 'none'}.")
    by_name = {method: dict(zip(case_names(items), items, strict=True)) for method, items in methods.items()}
    names = [name for name in next(iter(by_name.values())) if all(name in items for items in by_name.values())]
    if not names:
        listed = "; ".join(f"{method}: {', '.join(items) or 'none'}" for method, items in by_name.items())
        raise ValueError(f"The methods have no case in common: {listed}.")
    reviews = []
    for method, items in by_name.items():
        cases = [items[name] for name in names]
        beside = next((file.parent for item in cases if (file := map_file(item))), None)
        file = Path(f"{method}_{REVIEW_FILE}") if beside is None else beside / REVIEW_FILE
        reviews.append(Review(cases, threshold, file, method))
    files = [str(review.verdicts.path.resolve()) for review in reviews]
    if len(set(files)) < len(files):
        raise ValueError(
            f"Verdicts on several methods would go to one file, {files[0]}: keep their maps in folders apart."
        )
    for review in reviews:
        review.linked = True
        review.layout = Layout(flex="1 1 0", min_width="0")
    for other in reviews[1:]:
        jslink((reviews[0], "crosshair"), (other, "crosshair"))
    return HBox(reviews)


def view_3d(item: Mapping[str, Any] | Review, *, threshold: float | None = None, height: int = 480) -> NiiVue:
    """Shows a scan with its anomaly map in 3D, by NiiVue, which needs WebGL 2 in the browser.

    A cube in the corner has the letters of the patient's sides.

    Args:
        item: as :func:`~ssmctb_monai.visualize.load_heatmap` takes; of several modalities the first is shown. Of a
            review the case that is open in it, also when another one is opened later.
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
        from ipyniivue import NiiVue, SliceType

        from ssmctb_monai.visualize.widget import Review
    except ModuleNotFoundError as error:
        raise _lacking(error) from error
    view = NiiVue(height=height, is_radiological_convention=True, is_orient_cube=True)

    def show(shown: Mapping[str, Any]) -> None:
        view.load_volumes(_volumes(shown if threshold is None else {**shown, "threshold": threshold}))

    if isinstance(item, Review):
        cases = item.items
        show(cases[item.start])
        item.observe(lambda change: show(cases[change["new"]]), "start")
    else:
        check_item(item)
        show(item)
    view.set_slice_type(SliceType.RENDER)
    return view


def _volumes(item: Mapping[str, Any]) -> list[Volume]:
    """Makes what the view in 3D shows of a case: image and map."""
    from ipyniivue import Volume

    heatmap = load_heatmap(item)
    lowest = ViewerScan(heatmap).default_threshold
    name, image = next(iter(heatmap.images.items()))
    low, width = grey_window(image, heatmap.brain)
    highest = float(heatmap.anomaly_map[heatmap.peak])
    return [
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


def _nifti(array: np.ndarray, affine: np.ndarray) -> bytes:
    return nib.Nifti1Image(array.astype(np.float32), affine).to_bytes()


def _lacking(error: ModuleNotFoundError) -> ImportError:
    return ImportError(f'{error}. Widgets need an extra: pip install "ssmctb_monai[notebooks]"')
