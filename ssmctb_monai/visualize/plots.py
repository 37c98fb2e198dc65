"""Pictures of scores, drawn on matplotlib's axes and figures: for reports, notebooks and papers."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from io import BytesIO
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from monai.visualize import blend_images

from ssmctb_monai.metrics.view import Plane, View

__all__ = [
    "CURVES",
    "add_colorbar",
    "data_uri",
    "draw_image",
    "draw_map",
    "draw_outlines",
    "draw_overlay",
    "plot_curve",
    "plot_overlay",
    "plot_profile",
    "plot_style",
    "prepare_panel",
    "score_limits",
]

INK, MUTED, RULE = "#1f2933", "#5a6772", "#d5dbe1"
# Okabe and Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
METHOD_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
METHOD_DASHES = ("-", "--", "-.", ":")
LESION_OUTLINE, THRESHOLD_OUTLINE = "#33ddff", "white"
CHANCE: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "linestyle": (0, (2, 3)), "zorder": 1}
COLOR_MAP = "inferno"
OPACITY = 0.55  # of the highest score on the image

CURVES = {  # title, x axis, y axis
    "slice_roc": ("ROC, slices", "False positive rate", "Sensitivity"),
    "slice_pr": ("Precision and recall, slices", "Recall", "Precision"),
    "pixel_roc": ("ROC, voxels", "False positive rate", "Sensitivity"),
    "pixel_pr": ("Precision and recall, voxels", "Recall", "Precision"),
    "lesion_froc": ("FROC, lesions", "False positives per volume", "Lesion sensitivity"),
}


def plot_style(font_size: float = 9) -> AbstractContextManager[None]:
    """Sets fonts, colours and grid for the figures that are made inside.

    Args:
        font_size: size of the text in points; titles are a point larger, lines a fifth as wide.

    Returns:
        A context manager.

    Example:
        >>> with plot_style():
        ...     figure = Figure()
    """
    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",  # comes with matplotlib
            "font.size": font_size,
            "text.color": INK,
            "text.parse_math": False,  # a method's name is no formula
            "axes.labelcolor": INK,
            "axes.titlesize": font_size + 1,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.edgecolor": MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": RULE,
            "grid.linewidth": 0.6,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "legend.frameon": False,
            "lines.linewidth": font_size / 5,
            "figure.facecolor": "white",
        }
    )


def plot_curve(axes: Axes, curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], name: str) -> None:
    """Draws one curve of every method.

    Args:
        axes: where to draw.
        curves: the curves by method, as in ``report["curves"]``. Methods are told apart by colour and dashes, in their
            order; one that lacks this curve is left out.
        name: which curve, a key of ``CURVES``.

    Example:
        >>> plot_curve(Figure().add_subplot(), {"model": {"slice_roc": {"x": [0, 0, 1], "y": [0, 1, 1]}}}, "slice_roc")
    """
    title, x_label, y_label = CURVES[name]
    axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(-0.02, 1.02))
    largest = 0.0
    for index, (method, by_name) in enumerate(curves.items()):
        if name in by_name:
            x, y = by_name[name]["x"], by_name[name]["y"]
            color = METHOD_COLORS[index % len(METHOD_COLORS)]
            dashes = METHOD_DASHES[index % len(METHOD_DASHES)]
            axes.plot(x, y, color=color, linestyle=dashes, label=method, clip_on=False, zorder=3)
            largest = max(largest, *x)
    drawn = [method for method, by_name in curves.items() if name in by_name]
    axes.legend(axes.get_lines(), drawn, loc="best", handlelength=3)  # found by label, names with a leading _ are lost
    if name.endswith("_froc"):
        if largest > 10:
            # Else the few false positives that matter are a sliver; this linscale joins both parts without a kink
            axes.set_xscale("symlog", linthresh=0.1, linscale=1 / math.log(10))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel(f"{x_label} (logarithmic above 0.1)")
        axes.set_xlim(0, max(1.0, 1.02 * largest))
    else:
        axes.set_xlim(-0.02, 1.02)
    if name.endswith("_roc"):
        axes.axline((0, 0), slope=1, **CHANCE)


def plot_profile(
    axes: Axes,
    slices: Sequence[int],
    scores: Sequence[float],
    lesion: Sequence[bool],
    threshold: float | None = None,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws the scores of one case along the slice axis, with its lesion slices shaded.

    Args:
        axes: where to draw.
        slices: indices of the slices, ascending.
        scores: score of each slice.
        lesion: whether the slice holds a lesion.
        threshold: drawn as a dashed line.
        limits: lowest and highest score of the axis, so that several cases can be compared; ``None`` fits them.

    Example:
        >>> plot_profile(Figure().add_subplot(), [0, 1, 2], [0.1, 0.9, 0.2], [False, True, False], threshold=0.5)
    """
    marked = np.asarray(slices)[np.asarray(lesion, dtype=bool)]
    for run in np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1):
        if len(run):
            axes.axvspan(run[0] - 0.5, run[-1] + 0.5, color=ORANGE, alpha=0.3, linewidth=0)
    axes.plot(slices, scores, color=BLUE, linewidth=1.5, marker="o" if len(slices) == 1 else "")
    if threshold is not None:
        axes.axhline(threshold, color=INK, linewidth=1, linestyle="--")
    if limits is not None:
        margin = 0.05 * (limits[1] - limits[0]) or 0.5
        axes.set_ylim(limits[0] - margin, limits[1] + margin)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def score_limits(scores: Iterable[np.ndarray]) -> tuple[float, float]:
    """Finds one colour scale for several pictures.

    Args:
        scores: the scores in the brain of each, of any shape.

    Returns:
        The 0.1 and the 99.9 percentile of all that are finite; 0 and 1 where there are none.

    Example:
        >>> score_limits([np.linspace(0, 1, 1001), np.array([np.inf])])
        (0.001, 0.999)
    """
    joined = np.concatenate([part.ravel() for part in scores] or [np.empty(0)])
    joined = joined[np.isfinite(joined)]
    low, high = np.percentile(joined, [0.1, 99.9]) if len(joined) else (0.0, 1.0)
    return float(low), float(high)


def prepare_panel(axes: Axes, sides: str, title: str = "") -> None:
    """Makes axes a black panel without ticks that marks the patient's sides; what is drawn in it keeps its shape.

    Args:
        axes: the axes.
        sides: letters at the left, the right, the top and the bottom.
        title: title of the panel.
    """
    axes.set(facecolor="black", xticks=[], yticks=[], adjustable="datalim")
    axes.set_title(title, fontsize=matplotlib.rcParams["font.size"], fontweight="normal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for side, (x, y) in zip(sides, ((0, 0.5), (1, 0.5), (0.5, 1), (0.5, 0)), strict=True):
        axes.annotate(
            side,
            (x, y),
            (6 - 12 * x, 7 - 14 * y),
            xycoords="axes fraction",
            textcoords="offset points",
            color="white",
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


def draw_image(axes: Axes, plane: Plane) -> None:
    """Draws the image of a plane.

    Args:
        axes: where to draw.
        plane: the plane.

    Raises:
        ValueError: the plane has no image.
    """
    axes.imshow(_image(plane).T, cmap="gray", vmin=0, vmax=1, aspect=plane.aspect)


def draw_map(axes: Axes, plane: Plane, norm: Normalize) -> None:
    """Draws the scores of a plane, in the brain only.

    Args:
        axes: where to draw.
        plane: the plane.
        norm: colour scale.
    """
    inside = np.ma.masked_where(~plane.brain, plane.scores)
    axes.imshow(inside.T, cmap=COLOR_MAP, norm=norm, aspect=plane.aspect)


def draw_overlay(axes: Axes, plane: Plane, norm: Normalize) -> None:
    """Draws the scores of a plane on its image; the higher the score, the less transparent.

    Args:
        axes: where to draw.
        plane: the plane.
        norm: colour scale.

    Raises:
        ValueError: the plane has no image.
    """
    scores = np.where(plane.brain, norm(plane.scores), 0.0).astype(np.float32)
    blended = blend_images(
        _image(plane)[None], scores[None], alpha=OPACITY * scores[None], cmap=COLOR_MAP, rescale_arrays=False
    )
    axes.imshow(np.clip(blended, 0, 1).T, aspect=plane.aspect)


def draw_outlines(axes: Axes, plane: Plane, threshold: float | None) -> None:
    """Draws the borders of the lesion, solid, and of the voxels of the brain that reach the threshold, dashed.

    Args:
        axes: where to draw.
        plane: the plane.
        threshold: its border is left out where it is ``None``.
    """
    if plane.label is not None:
        _outline(axes, plane.label, LESION_OUTLINE, "solid")
    if threshold is not None:
        _outline(axes, plane.brain & (plane.scores >= threshold), THRESHOLD_OUTLINE, "dashed")


def add_colorbar(figure: Figure, norm: Normalize, threshold: float | None, label: str = "", **place: Any) -> None:
    """Adds a colour bar, with the threshold as a dashed line where it is on the scale.

    Args:
        figure: where to draw.
        norm: the colour scale.
        threshold: the threshold; ``None`` draws none.
        label: what the scores are.
        place: where the bar goes, as in :meth:`matplotlib.figure.Figure.colorbar`: ``cax``, or ``ax`` and its options.
    """
    short = MaxNLocator(6, steps=[1, 2, 5, 10])  # numbers that leave room for the label
    bar = figure.colorbar(ScalarMappable(norm, COLOR_MAP), label=label, ticks=short, **place)
    bar.outline.set_visible(False)
    low, high = bar.ax.get_ylim()
    if threshold is not None and low < threshold < high:
        bar.ax.axhline(threshold, color=THRESHOLD_OUTLINE, linestyle="dashed", linewidth=1.2)


def plot_overlay(
    figure: Figure, view: View, threshold: float | None = None, limits: tuple[float, float] | None = None
) -> None:
    """Draws a view as image, anomaly map and both overlaid, or as anomaly map alone where there is no image.

    The lesion has a solid outline, the voxels of the brain that reach the threshold a dashed one. The patient's right
    is on the left, as in radiology, and marked. The picture is cropped to the brain, and shows no scores outside it.

    Args:
        figure: where to draw; it should be empty.
        view: what to draw.
        threshold: its outline is left out where it is ``None``.
        limits: scores of the ends of the colour scale; ``None`` takes :func:`score_limits` of this view.

    Example:
        >>> plot_overlay(Figure(figsize=(9, 3), layout="constrained"), view, threshold=0.5)  # doctest: +SKIP
    """
    window = _window(view.plane.brain)
    arrays = {name: getattr(view.plane, name) for name in ("image", "scores", "brain", "label")}
    plane = replace(view.plane, **{name: array[window] for name, array in arrays.items() if array is not None})
    norm = Normalize(*(limits or score_limits([plane.scores[plane.brain]])), clip=True)
    drawn = ["lesion solid"] * bool(plane.label is not None and plane.label.any()) + ["threshold dashed"] * (
        threshold is not None
    )
    titles = ["Anomaly map"] if plane.image is None else ["Image", "Anomaly map", "Overlay"]
    titles[-1] += f" ({', '.join(drawn)})" if drawn else ""
    panels = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(panels, titles, strict=True):
        prepare_panel(axes, plane.sides, title)
    draw_map(panels[min(1, len(panels) - 1)], plane, norm)
    if plane.image is not None:
        draw_image(panels[0], plane)
        draw_overlay(panels[2], plane, norm)
    draw_outlines(panels[-1], plane, threshold)
    add_colorbar(figure, norm, threshold, ax=panels, fraction=0.03, pad=0.01, aspect=24)


def data_uri(figure: Figure, kind: Literal["svg", "png"]) -> str:
    """Writes a figure into a URI, for a page that stands alone; the same figure gives the same text.

    Args:
        figure: the figure.
        kind: ``"svg"`` for lines, ``"png"`` for images.

    Returns:
        ``data:image/…;base64,…``.
    """
    file = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ssmctb_monai", "svg.fonttype": "path"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=120, metadata=metadata)
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(file.getvalue()).decode()}"


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Finds the part of the picture that holds the mask, with a margin, and at least half of the picture."""
    spans = []
    for axis, size in enumerate(mask.shape):
        filled = np.flatnonzero(mask.any(axis=1 - axis))
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, size - 1)
        missing = max(0, size // 2 - (last - first + 1))
        spans.append(slice(max(0, first - 4 - missing // 2), last + 5 + missing // 2))
    return spans[0], spans[1]


def _image(plane: Plane) -> np.ndarray:
    """Returns the image in single precision, which half precision of a view is drawn in."""
    if plane.image is None:
        raise ValueError("The plane has no image.")
    return plane.image.astype(np.float32)


def _outline(axes: Axes, mask: np.ndarray, color: str, dashes: str) -> None:
    """Draws the border of a mask; the frame of zeros closes it at the edge of the picture."""
    if mask.any():
        width, height = mask.shape
        across, down = np.arange(-1, width + 1), np.arange(-1, height + 1)
        framed = np.pad(mask.astype(float), 1)
        axes.contour(across, down, framed.T, [0.5], colors=color, linestyles=dashes, linewidths=1.2)
