"""Pictures of an evaluation, drawn on matplotlib's axes and figures: for the report, and for notebooks."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssmctb_monai.metrics.view import View

__all__ = ["CURVES", "data_uri", "plot_curve", "plot_overlay", "plot_profile", "report_style", "score_limits"]

INK, MUTED, RULE = "#1f2933", "#5a6772", "#d5dbe1"
# Okabe and Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
METHOD_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
METHOD_DASHES = ("-", "--", "-.", ":")
LESION_OUTLINE, THRESHOLD_OUTLINE = "#33ddff", "white"

CURVES = {  # title, x axis, y axis
    "slice_roc": ("ROC, slices", "False positive rate", "Sensitivity"),
    "slice_pr": ("Precision and recall, slices", "Recall", "Precision"),
    "pixel_roc": ("ROC, pixels", "False positive rate", "Sensitivity"),
    "pixel_pr": ("Precision and recall, pixels", "Recall", "Precision"),
    "lesion_froc": ("FROC, lesions", "False positives per volume", "Lesion sensitivity"),
}


def report_style() -> AbstractContextManager[None]:
    """Sets fonts, colours and grid of the report for the figures that are made inside.

    Returns:
        A context manager.

    Example:
        >>> with report_style():
        ...     figure = Figure()
    """
    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",  # comes with matplotlib
            "font.size": 9,
            "text.color": INK,
            "text.parse_math": False,  # a method's name is no formula
            "axes.labelcolor": INK,
            "axes.titlesize": 10,
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
            axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.8, label=method, clip_on=False, zorder=3)
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
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)


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


def score_limits(views: Sequence[View]) -> tuple[float, float]:
    """Finds one colour scale for several views.

    Args:
        views: the views.

    Returns:
        The 0.1 and the 99.9 percentile of their scores in the brain; 0 and 1 where there are none.
    """
    scores = np.concatenate([view.anomaly_map[view.brain] for view in views] or [np.empty(0)])
    scores = scores[np.isfinite(scores)]
    low, high = np.percentile(scores, [0.1, 99.9]) if len(scores) else (0.0, 1.0)
    return float(low), float(high)


def plot_overlay(
    figure: Figure, view: View, threshold: float | None = None, limits: tuple[float, float] | None = None
) -> None:
    """Draws a view as image, anomaly map and both overlaid, or as anomaly map alone where there is no image.

    The lesion has a solid outline, the voxels of the brain that reach the threshold a dashed one. The patient's left is
    on the left, as marked. The picture is cropped to the brain, and shows no scores outside it.

    Args:
        figure: where to draw; it should be empty.
        view: what to draw.
        threshold: its outline is left out where it is ``None``.
        limits: scores of the ends of the colour scale; ``None`` takes :func:`score_limits` of this view.

    Example:
        >>> plot_overlay(Figure(figsize=(9, 3), layout="constrained"), view, threshold=0.5)  # doctest: +SKIP
    """
    low, high = limits or score_limits([view])
    norm = Normalize(low, high, clip=True)
    counted = view.brain | view.label
    window = _window(counted)
    counted, label, scores = counted[window].T, view.label[window].T, view.anomaly_map[window].T
    drawn = ["lesion solid"] * bool(label.any()) + ["threshold dashed"] * (threshold is not None)
    titles = ["Anomaly map"] if view.image is None else ["Image", "Anomaly map", "Overlay"]
    titles[-1] += f" ({', '.join(drawn)})" if drawn else ""
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, title in zip(panels, titles, strict=True):
        axes.set(facecolor="black", xticks=[], yticks=[])
        axes.set_title(title, fontsize=9, fontweight="normal")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for side, x in {"L": 0.02, "R": 0.98}.items():
            align: Literal["left", "right"] = "left" if side == "L" else "right"
            axes.text(x, 0.5, side, transform=axes.transAxes, color="#b8c2cc", ha=align, va="center")

    inside = np.ma.masked_where(~counted, scores)
    if view.image is not None:
        for axes in (panels[0], panels[2]):
            axes.imshow(view.image[window].T.astype(np.float32), cmap="gray", vmin=0, vmax=1, origin="lower")
        panels[2].imshow(inside, cmap="inferno", norm=norm, alpha=0.55 * np.asarray(norm(scores)), origin="lower")
    map_axes = panels[min(1, len(panels) - 1)]
    colors = map_axes.imshow(inside, cmap="inferno", norm=norm, origin="lower")
    _outline(panels[-1], label, LESION_OUTLINE, "solid")
    bar = figure.colorbar(colors, ax=list(panels), fraction=0.03, pad=0.01, aspect=24)
    bar.outline.set_visible(False)
    if threshold is not None:
        _outline(panels[-1], counted & (scores >= threshold), THRESHOLD_OUTLINE, "dashed")
        if low < threshold < high:
            bar.ax.axhline(threshold, color=THRESHOLD_OUTLINE, linestyle="dashed", linewidth=1.2)


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


def _outline(axes: Axes, mask: np.ndarray, color: str, dashes: str) -> None:
    """Draws the border of a mask; the frame of zeros closes it at the edge of the picture."""
    if mask.any():
        rows, columns = mask.shape
        framed = np.pad(mask.astype(float), 1)
        axes.contour(
            np.arange(-1, columns + 1),
            np.arange(-1, rows + 1),
            framed,
            [0.5],
            colors=color,
            linestyles=dashes,
            linewidths=1.2,
        )
