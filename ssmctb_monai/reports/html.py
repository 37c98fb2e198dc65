"""The report of an evaluation as one HTML page that stands alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from ssmctb_monai.metrics.view import View
from ssmctb_monai.visualize.plots import (
    CURVES,
    data_uri,
    plot_curve,
    plot_overlay,
    plot_profile,
    plot_style,
    score_limits,
)
from ssmctb_monai.visualize.viewer import asset, colormaps

__all__ = ["render_html"]

GROUP_SIZE = 3  # pictures of best, of median, of worst cases, and of false alarms
MOST_PROFILES = 24
MOST_FALSE_ALARMS = 10
UNDEFINED = {"value": None, "interval": None, "reason": None}

Row = Mapping[str, Any]


def render_html(
    report: Row,
    cases: Sequence[Row],
    slices: Sequence[Row],
    views: Sequence[View],
    scans: Sequence[str] | Mapping[str, str] = (),
) -> str:
    """Writes the page: metrics, curves, pictures of cases, score profiles, false alarms, settings and definitions.

    Pictures are part of the page; pictures and profiles show the first method of the report. Their number is limited,
    so that the page stays small with hundreds of cases. Scans to scroll through are read from beside the page, unless
    it holds them itself; it loads nothing else, and without them it holds no script.

    Args:
        report: what goes into ``report.json``.
        cases: rows of ``cases.csv``.
        slices: rows of ``slices.csv``.
        views: slices to look at. Of the first method, those of the best, median and worst cases and of the
            highest false alarms are shown; a case without its view gets its metrics only.
        scans: names of the cases that the folder ``viewer`` beside the page holds, see `write_case`; or what the page
            is to hold itself of each, see `read_case`, by its name.

    Returns:
        The page.

    Example:
        >>> Path("report.html").write_text(render_html(report, cases, slices, views), "utf-8")  # doctest: +SKIP
    """
    shown = next(iter(report["methods"]), None)
    cases = sorted((row for row in cases if row["method"] == shown), key=_worst_first)
    slices = [row for row in slices if row["method"] == shown and row["score"] is not None]
    threshold = report["methods"][shown]["threshold"] if shown else None
    value = threshold["value"] if threshold else None
    alarms = _false_alarms(slices)[:MOST_FALSE_ALARMS]
    groups = _best_median_worst(cases)
    by_key = {(view.case_id, view.kind): view for view in views if view.method == shown}
    keys = [(row["case_id"], "lesion") for group in groups.values() for _, row in group]
    keys += [(row["case_id"], "false_alarm") for row in alarms[:GROUP_SIZE]]
    pictured = {key: by_key[key] for key in keys if key in by_key}
    limits = score_limits(view.plane.scores[view.plane.brain] for view in pictured.values())

    environment = Environment(
        loader=PackageLoader("ssmctb_monai", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # keys keep their order
    environment.filters["number"] = _number
    environment.filters["date"] = lambda text: datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z")
    with plot_style():
        curves = dict(_curves(report))
        return environment.get_template("report.html.j2").render(
            report=report,
            shown=shown,
            threshold=value,
            **_table(report),
            curves=curves,
            missing_curves=[title for title, *_ in CURVES.values() if title not in curves],
            groups=groups,
            pictures={key: (view, _picture(view, value, limits)) for key, view in pictured.items()},
            limits=limits,
            profiles=list(_profiles(cases[:MOST_PROFILES], slices, value)),
            profiled_cases=len(cases),
            ranked=sum(row["pixel_average_precision"] is not None for row in cases),
            alarms=alarms,
            viewer=_viewer(scans, cases, shown) if scans else None,
        )


def _viewer(scans: Sequence[str] | Mapping[str, str], cases: Sequence[Row], method: str | None) -> dict[str, Any]:
    """Collects the parts of the viewer; scans come in the order of the cases."""
    names = [row["case_id"] for row in cases if row["case_id"] in scans]
    script = asset("viewer.js") + asset("page.js")
    return {
        "style": asset("viewer.css"),
        "script": script,
        "hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": {"cases": names, "method": method, "colormaps": colormaps()},
        "embedded": scans if isinstance(scans, Mapping) else {},
    }


def _worst_first(row: Row) -> tuple[bool, float, str]:
    """Sorts cases by pixel average precision; those without one, for want of a lesion, come last."""
    precision = row["pixel_average_precision"]
    return precision is None, precision or 0.0, row["case_id"]


def _best_median_worst(cases: Sequence[Row]) -> dict[str, list[tuple[int, Row]]]:
    """Picks cases with their ranks, none twice."""
    ranked = [row for row in cases if row["pixel_average_precision"] is not None][::-1]
    picks = list(enumerate(ranked, start=1))
    if len(picks) < 3:
        return {"All cases": picks} if picks else {}
    size = min(GROUP_SIZE, len(picks) // 3)
    middle = (len(picks) - size) // 2
    return {"Best": picks[:size], "Median": picks[middle : middle + size], "Worst": picks[-size:]}


def _false_alarms(slices: Sequence[Row]) -> list[Row]:
    """Finds the lesion-free slice with the highest score of each case, highest first."""
    highest: dict[str, Row] = {}
    for row in slices:
        best = highest.get(row["case_id"])
        if not row["lesion_voxels"] and (best is None or row["score"] > best["score"]):
            highest[row["case_id"]] = row
    return sorted(highest.values(), key=lambda row: -row["score"])


def _table(report: Row) -> dict[str, Any]:
    """Lays the metrics out: rows by level, a cell for each method and difference, and the reasons as numbered notes."""
    notes: dict[str, int] = {}

    def cell(estimate: Row, definition: Row, difference: bool) -> dict[str, Any]:
        reason, interval, higher_is_better = estimate["reason"], estimate["interval"], definition["higher_is_better"]
        ends = [_number(end, definition["unit"]) for end in interval or ()]
        verdict = None
        if difference and interval and higher_is_better is not None and not interval[0] <= 0 <= interval[1]:
            verdict = "better" if (interval[0] > 0) == higher_is_better else "worse"
        return {
            "value": _number(estimate["value"], definition["unit"], signed=difference),
            "interval": f"[{ends[0]}, {ends[1]}]" if ends else None,
            "reason": reason,
            "note": notes.setdefault(reason, len(notes) + 1) if reason else None,
            "verdict": verdict,
        }

    columns = [(name, method["figures"], False) for name, method in report["methods"].items()]
    columns += [
        (f"{item['method']} \N{MINUS SIGN} {item['reference']}", item["figures"], True)
        for item in report["differences"]
    ]
    levels: dict[str, list[tuple[str, Row, list[dict[str, Any]]]]] = {}
    for name, definition in report["figure_definitions"].items():
        cells = [cell(estimates.get(name, UNDEFINED), definition, signed) for _, estimates, signed in columns]
        levels.setdefault(definition["level"], []).append((name, definition, cells))
    return {"columns": [name for name, *_ in columns], "levels": levels, "notes": notes}


def _number(value: float | None, unit: str | None = None, *, signed: bool = False) -> str | None:
    """Formats a metric: three decimals, or two where it has a unit; with a true minus sign and no negative zero."""
    if value is None:
        return None
    decimals = 2 if unit else 3
    return f"{round(value, decimals) + 0.0:{'+' if signed else ''}.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _curves(report: Row) -> Iterator[tuple[str, str]]:
    """Draws the curves that at least one method has, each with its title."""
    curves = {method: report["curves"].get(method, {}) for method in report["methods"]}
    for name, (title, *_) in CURVES.items():
        if any(name in by_name for by_name in curves.values()):
            figure = Figure(figsize=(4.4, 3.8), layout="constrained")
            plot_curve(figure.add_subplot(), curves, name)
            yield title, data_uri(figure, "svg")


def _picture(view: View, threshold: float | None, limits: tuple[float, float]) -> str:
    figure = Figure(figsize=(3.6 if view.plane.image is None else 9.3, 3.2), layout="constrained")
    plot_overlay(figure, view, threshold, limits)
    return data_uri(figure, "png")


def _profiles(cases: Sequence[Row], slices: Sequence[Row], threshold: float | None) -> Iterator[tuple[Row, str]]:
    """Draws the scores along the slice axis of each case, all on one scale."""
    names = {row["case_id"] for row in cases}
    by_case: dict[str, list[Row]] = {}
    for row in sorted((row for row in slices if row["case_id"] in names), key=lambda row: row["slice"]):
        by_case.setdefault(row["case_id"], []).append(row)
    scores = [row["score"] for rows in by_case.values() for row in rows] + ([] if threshold is None else [threshold])
    for case in cases:
        rows = by_case.get(case["case_id"], [])
        if rows:
            figure = Figure(figsize=(3.5, 1.7), layout="constrained")
            plot_profile(
                figure.add_subplot(),
                [row["slice"] for row in rows],
                [row["score"] for row in rows],
                [row["lesion_voxels"] > 0 for row in rows],
                threshold,
                (min(scores), max(scores)),
            )
            yield case, data_uri(figure, "svg")
