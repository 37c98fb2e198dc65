"""Figures for papers: a case in three planes, a montage of its slices, and the curves of an evaluation.

They are figures of matplotlib, made without pyplot: save them with ``figure.savefig``; a notebook shows them after
``%matplotlib inline``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from textwrap import fill
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import offset_copy

from ssmctb_monai.data.oriented_case import grey_window
from ssmctb_monai.metrics.curves import curves_of
from ssmctb_monai.metrics.evaluation import CONFIDENCE, AnomalyEvaluation
from ssmctb_monai.metrics.view import Plane
from ssmctb_monai.visualize.heatmap import Heatmap, load_heatmap
from ssmctb_monai.visualize.plots import (
    CHANCE,
    LESION_OUTLINE,
    ORANGE,
    THRESHOLD_OUTLINE,
    add_colorbar,
    draw_image,
    draw_map,
    draw_outlines,
    draw_overlay,
    plot_curve,
    plot_style,
    prepare_panel,
    score_limits,
)

__all__ = ["plot_case", "plot_montage", "plot_roc_pr"]

INCH = 25.4
DOUBLE_COLUMN = 180.0  # in mm on the page
COLOR_BAR, TITLE, LEGEND, GAP, EDGE = 18.0, 5.5, 7.0, 2.0, 1.0  # what they take of it, with numbers and margins
FONT_SIZE = 8
MARGIN = 5.0  # in mm of the patient, around the brain
FLATTEST = 0.35  # height of a panel in widths of one: a thin slab can be read, too
PLANES = {  # axis that is cut, axes across and down, the patient's sides
    "axial": (2, 0, 1, "RLAP"),
    "coronal": (1, 0, 2, "RLSI"),
    "sagittal": (0, 1, 2, "APSI"),
}
SUMMARIES = {"roc": ("auroc", "AUROC"), "pr": ("average_precision", "AP")}  # of curves: figure, its short name

LEFT_OUT: dict[str, Any] = {"value": None, "interval": None, "reason": None}  # of an evaluation of chosen metrics

Level = Literal["pixel", "slice"]


def plot_case(item: Mapping[str, Any] | Heatmap, threshold: float | None = None) -> Figure:
    """Draws the three planes through the highest score of a case: image, anomaly map, and both with outlines.

    Planes lie as in radiology: the patient's right, or the front, is on the left. All share one scale in mm, and one of
    colours from the 0.1 to the 99.9 percentile of the scores in the brain. Titles say where the planes cross, in mm
    from the origin of the scan towards the patient's right (x), front (y) and head (z); planes of an oblique scan
    follow its own axes.

    Args:
        item: a case, as :func:`~ssmctb_monai.visualize.heatmap.load_heatmap` takes it, or what that returned. Its first
            modality is shown.
        threshold: voxels that reach it are outlined; ``None`` takes the one that came with the case, if any.

    Returns:
        The figure, 180 mm wide.

    Raises:
        KeyError: image or anomaly map are missing.
        ValueError: they cannot be shown, see :func:`~ssmctb_monai.visualize.heatmap.load_heatmap`.
        OSError: a file cannot be read.

    Example:
        >>> figure = plot_case({"image": "P1_flair.nii.gz", "anomaly_map": "maps/P1.nii.gz"})  # doctest: +SKIP
        >>> figure.savefig("P1.png", dpi=300)  # doctest: +SKIP
    """
    scan = _Scan(item, threshold)
    position = scan.heatmap.affine @ [*scan.heatmap.peak, 1]
    width = max(scan.size[across] for _, across, *_ in PLANES.values())
    heights = [max(scan.size[down], FLATTEST * width) for _, _, down, *_ in PLANES.values()]
    with plot_style(FONT_SIZE):
        figure, grid = scan.lay_out(3, width, heights)
        for panels, height, (name, (axis, *_)) in zip(grid, heights, PLANES.items(), strict=True):
            place = f"{'xyz'[axis]} = {position[axis]:.1f} mm"
            titles = (f"{scan.modality}, {name}, {place}", "Anomaly map", "Overlay")
            for axes, title in zip(panels, titles, strict=True):
                plane = scan.open_panel(axes, name, scan.heatmap.peak[axis], (width, height), title)
            draw_image(panels[0], plane)
            draw_map(panels[1], plane, scan.norm)
            draw_overlay(panels[2], plane, scan.norm)
            draw_outlines(panels[2], plane, scan.threshold)
    return figure


def plot_montage(item: Mapping[str, Any] | Heatmap, slices: int = 12, threshold: float | None = None) -> Figure:
    """Draws evenly spaced axial slices of the brain, from the feet up: scores on the image, with outlines.

    Slices lie as in radiology, the patient's right on the left. Each has its index from the feet up and its slice score
    as title, as in ``slices.csv`` of a report; slices with lesion have a frame.

    Args:
        item: a case, as :func:`~ssmctb_monai.visualize.heatmap.load_heatmap` takes it, or what that returned. Its first
            modality is shown.
        slices: number of slices, at least 1; a brain that has fewer is shown with all of them.
        threshold: voxels that reach it are outlined; ``None`` takes the one that came with the case, if any.

    Returns:
        The figure, 180 mm wide.

    Raises:
        KeyError: image or anomaly map are missing.
        ValueError: ``slices`` is below 1, or the case cannot be shown, see
            :func:`~ssmctb_monai.visualize.heatmap.load_heatmap`.
        OSError: a file cannot be read.

    Example:
        >>> figure = plot_montage(heatmap, slices=20, threshold=0.4)  # doctest: +SKIP
        >>> figure.savefig("montage.pdf")  # doctest: +SKIP
    """
    if slices < 1:
        raise ValueError(f"A montage has at least 1 slice, got slices={slices}.")
    scan = _Scan(item, threshold)
    table = {name: values[scan.heatmap.slices["brain_voxels"] > 0] for name, values in scan.heatmap.slices.items()}
    count = min(slices, len(table["slice"]))
    shown = [int((index + 0.5) * len(table["slice"]) / count) for index in range(count)]  # middles of equal slabs
    width, height, _ = scan.size
    columns, rows = _balanced_grid(count, height / width)
    with plot_style(FONT_SIZE - 1):
        figure, grid = scan.lay_out(columns, width, [height] * rows, framed=True)
        panels = [axes for row in grid for axes in row]
        for axes in panels[count:]:
            axes.remove()
        for axes, row in zip(panels, shown, strict=False):
            number, score = table["slice"][row], table["score"][row]
            index = scan.heatmap.brain.shape[2] - 1 - number  # slices are counted from the feet, planes from the head
            plane = scan.open_panel(axes, "axial", index, (width, height), f"Slice {number}: score {score:.3g}")
            draw_overlay(axes, plane, scan.norm)
            draw_outlines(axes, plane, scan.threshold)
            if table["lesion_voxels"][row]:
                axes.spines[:].set(visible=True, color=ORANGE, linewidth=2)
    return figure


def plot_roc_pr(
    evaluation: AnomalyEvaluation | Mapping[str, Any], level: Level = "pixel", width: float = DOUBLE_COLUMN
) -> Figure:
    """Draws the ROC and the precision-recall curve of all methods of an evaluation side by side.

    The legends hold area or average precision with their intervals, where they were evaluated. Chance is dotted: the
    diagonal of the ROC, and as precision the share of what is lesion, to which a curve falls when everything is
    flagged.

    Args:
        evaluation: an evaluation, or its report: what :func:`~ssmctb_monai.reports.build_report` made of it, or
            ``report.json``.
        level: ``"pixel"`` or ``"slice"``.
        width: width of the figure in mm: 180 for a double column, 90 for a single one.

    Returns:
        The figure.

    Raises:
        ValueError: the level is unknown, one of its curves is not defined for any method, or the dictionary is no
            report.

    Example:
        >>> report = json.loads(Path("report.json").read_text("utf-8"))  # doctest: +SKIP
        >>> plot_roc_pr(report, "slice", width=90).savefig("slices.pdf")  # doctest: +SKIP
    """
    if level not in get_args(Level):
        raise ValueError(f"The level must be one of {', '.join(get_args(Level))}, got {level!r}.")
    curves, figures, confidence = _results(evaluation)
    size, ticks = (FONT_SIZE, 6) if width > DOUBLE_COLUMN / 2 else (FONT_SIZE - 1, 3)
    page, left, above, below = width / INCH * 72, 14 + 2.8 * size, 2 * size, 15 + 2.5 * size  # in points
    side = page / 2 - left - 6
    letters = int((side - 2.8 * size) / (0.62 * size))  # of a method's name beside its line
    names = {method: fill(method, letters) for method in curves}
    lines = 4 + sum(name.count("\n") + 2.5 for name in names.values())  # of the legend
    height = above + side + below + 1.2 * size * lines
    with plot_style(size):
        figure = Figure((page / 72, height / 72))
        for index, (kind, (name, title)) in enumerate(SUMMARIES.items()):
            estimates = {method: by_name.get(f"{level}_{name}", LEFT_OUT) for method, by_name in figures.items()}
            drawn = [method for method, by_name in curves.items() if f"{level}_{kind}" in by_name]
            if not drawn:
                reasons = {estimate["reason"] for estimate in estimates.values() if estimate["reason"]}
                reason = "; ".join(sorted(reasons)) or "no method has one"
                raise ValueError(f"There is no {level} {kind.upper()} curve to draw: {reason}.")
            corner = index / 2 + left / page, 1 - (above + side) / height
            axes = figure.add_axes((*corner, side / page, side / height))
            plot_curve(axes, curves, f"{level}_{kind}")
            axes.set(xticks=np.linspace(0, 1, ticks), yticks=np.linspace(0, 1, ticks))
            axes.set_title(f"{kind.upper()}, {level}s")
            chance = 0.5
            if kind == "pr":  # the last point is that at which everything is flagged
                chance = curves[drawn[0]][f"{level}_pr"]["y"][-1]
                axes.axhline(chance, **CHANCE)
            if any(estimates[method]["interval"] for method in drawn):
                title += f" [{100 * confidence:g} % interval]"
            axes.legend(
                axes.get_lines(),  # chance is the last
                [*(f"{names[method]}\n{_text(estimates[method])}" for method in drawn), f"chance\n{chance:.3f}"],
                title=title,
                loc="upper left",
                bbox_to_anchor=(0, 0),
                bbox_transform=offset_copy(axes.transAxes, figure, y=-below, units="points"),
                handlelength=2.2,
                handletextpad=0.6,
                borderpad=0,
                borderaxespad=0,
                alignment="left",
            )
    return figure


class _Scan:
    """What the planes of a case share: its first modality scaled, the part that holds the brain, colours and page."""

    def __init__(self, item: Mapping[str, Any] | Heatmap, threshold: float | None) -> None:
        self.heatmap = heatmap = item if isinstance(item, Heatmap) else load_heatmap(item)
        self.threshold = heatmap.threshold if threshold is None else threshold
        self.modality, image = next(iter(heatmap.images.items()))
        low, width = grey_window(image, heatmap.brain)
        self.image = np.clip((image - low) / width, 0, 1)
        self.norm = Normalize(*score_limits([heatmap.anomaly_map[heatmap.brain]]), clip=True)
        self.box = heatmap.box([math.ceil(MARGIN / spacing) for spacing in heatmap.spacing])
        self.size = np.array([span.stop - span.start for span in self.box]) * heatmap.spacing

    def lay_out(
        self, columns: int, width: float, heights: Sequence[float], *, framed: bool = False
    ) -> tuple[Figure, list[list[Axes]]]:
        """Makes a page of panels, all of one scale, with the colour bar and the legend of the outlines.

        Args:
            columns: number of panels side by side.
            width: width of the panels in mm of the patient.
            heights: height of the panels of each row, in the same unit.
            framed: whether frames mark slices with lesion.

        Returns:
            The page and the panels of its rows.
        """
        keys = self._keys(framed=framed)
        panel = (DOUBLE_COLUMN - COLOR_BAR - EDGE - (columns - 1) * GAP) / columns  # in mm on the page, as all below
        sizes = [panel / width * height for height in heights]
        page = DOUBLE_COLUMN, EDGE + sum(sizes) + len(sizes) * TITLE + (LEGEND if keys else EDGE)
        figure = Figure((page[0] / INCH, page[1] / INCH))

        def add_axes(left: float, bottom: float, width: float, height: float) -> Axes:
            return figure.add_axes((left / page[0], bottom / page[1], width / page[0], height / page[1]))

        grid = []
        bottom = page[1] - EDGE
        for size in sizes:
            bottom -= TITLE + size
            grid.append([add_axes(EDGE + index * (panel + GAP), bottom, panel, size) for index in range(columns)])
        bar = add_axes(page[0] - COLOR_BAR + GAP, bottom, 3.5, page[1] - EDGE - TITLE - bottom)
        add_colorbar(figure, self.norm, self.threshold, "Anomaly score", cax=bar)
        if keys:
            figure.legend(
                handles=keys,
                loc="upper left",
                bbox_to_anchor=(EDGE / page[0], (bottom - EDGE) / page[1]),
                borderaxespad=0,
                ncols=len(keys),
                frameon=True,
                facecolor="black",
                edgecolor="none",
                framealpha=1,
                fancybox=False,
                labelcolor="white",
            )
        return figure, grid

    def open_panel(self, axes: Axes, name: str, index: int, size: tuple[float, float], title: str) -> Plane:
        """Cuts a plane, of ``PLANES``, and prepares axes of a width and height in mm of the patient to show it."""
        heatmap = self.heatmap
        axis, across, down, sides = PLANES[name]
        place: list[slice | int] = list(self.box)
        place[axis] = index
        where = tuple(place)
        plane = Plane(
            image=self.image[where],
            scores=heatmap.anomaly_map[where],
            brain=heatmap.brain[where],
            label=None if heatmap.label is None else heatmap.label[where],
            sides=sides,
            aspect=heatmap.spacing[down] / heatmap.spacing[across],
        )
        prepare_panel(axes, sides, title)
        x, y = ((voxels - 1) / 2 for voxels in plane.scores.shape)
        half_x, half_y = size[0] / heatmap.spacing[across] / 2, size[1] / heatmap.spacing[down] / 2
        axes.set(xlim=(x - half_x, x + half_x), ylim=(y + half_y, y - half_y))
        return plane

    def _keys(self, *, framed: bool) -> list[Line2D | Patch]:
        """Makes the entries of the legend."""
        keys: list[Line2D | Patch] = []
        if self.heatmap.label is not None:
            keys.append(Line2D([], [], color=LESION_OUTLINE, label="lesion label"))
            if framed:
                keys.append(Patch(facecolor="none", edgecolor=ORANGE, linewidth=2, label="slice with lesion"))
        if self.threshold is not None:
            label = f"score \N{GREATER-THAN OR EQUAL TO} {self.threshold:.3g}"
            keys.append(Line2D([], [], color=THRESHOLD_OUTLINE, linestyle="dashed", label=label))
        return keys


def _balanced_grid(count: int, aspect: float) -> tuple[int, int]:
    """Finds columns and rows for panels of that many widths in height: a wide page, and few empty places."""

    def badness(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns / (rows * aspect) / 1.5)) + 2 * (rows * columns / count - 1)

    columns = min(range(1, count + 1), key=badness)
    return columns, math.ceil(count / columns)


def _results(evaluation: AnomalyEvaluation | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Finds curves and estimates by method, as a report holds them, and the confidence of the intervals."""
    if isinstance(evaluation, AnomalyEvaluation):
        curves = {
            method: {name: curve._asdict() for name, curve in curves_of(pooled).items()}
            for method, pooled in evaluation.pooled.items()
        }
        figures = {
            method: {name: asdict(estimate) for name, estimate in evaluation.estimates(method).items()}
            for method in evaluation.methods
        }
        return curves, figures, CONFIDENCE
    if missing := {"curves", "methods", "settings"} - evaluation.keys():
        raise ValueError(
            f"This is no report of an evaluation, it lacks {', '.join(sorted(missing))}: read report.json."
        )
    figures = {method: entry["figures"] for method, entry in evaluation["methods"].items()}
    curves = {method: evaluation["curves"].get(method, {}) for method in figures}
    return curves, figures, evaluation["settings"]["confidence"]


def _text(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "left out"
    interval = estimate["interval"]
    return f"{estimate['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
