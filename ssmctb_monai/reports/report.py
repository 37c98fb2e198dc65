"""Reports of an evaluation: ``report.json`` by a documented schema, tables as CSV, and a page to look at."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.config import PathLike

from ssmctb_monai import __version__
from ssmctb_monai.files import whole_files, write_csv
from ssmctb_monai.metrics.curves import curves_of
from ssmctb_monai.metrics.definitions import AUPRO_LIMIT, FROC_PLACES, METRICS
from ssmctb_monai.metrics.evaluation import CONFIDENCE, AnomalyEvaluation, Estimate
from ssmctb_monai.metrics.lesions import MIN_OVERLAP
from ssmctb_monai.metrics.pooled_cases import POSITION_TOLERANCE
from ssmctb_monai.reports.evaluation_run import VIEWER
from ssmctb_monai.reports.html import render_html
from ssmctb_monai.visualize.viewer import read_case

SCHEMA_VERSION = "1.0"
FILES = ("report.html", "report.json", "cases.csv", "slices.csv")
CASE_METRICS = (
    "pixel_auroc",
    "pixel_average_precision",
    "dice_at_threshold",
    "best_dice_oracle",
    "slice_auroc",
)


def build_report(evaluation: AnomalyEvaluation, description: str | None = None) -> dict[str, Any]:
    """Makes the report of an evaluation, by the schema ``report.schema.json`` beside this module.

    Args:
        evaluation: the evaluation.
        description: what was evaluated, in words.

    Returns:
        Report of plain numbers, texts, lists and dictionaries; what is not defined is ``None`` and has a reason.

    Raises:
        ValueError: when there is no case.
    """
    if not evaluation.cases:
        raise ValueError("There is no case to report: " + _failures(evaluation.failed))
    first, *others = evaluation.methods
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "software": {"ssmctb_monai": __version__, "monai": monai.__version__, "torch": torch.__version__},
        "description": description,
        "settings": {
            **asdict(evaluation.settings),
            "confidence": CONFIDENCE,
            "voxels": " or ".join(
                sorted({"brain" if case.has_brain else "all" for case in evaluation.cases}, reverse=True)
            ),
            "position_tolerance": POSITION_TOLERANCE,
            "min_overlap": MIN_OVERLAP,
            "aupro_limit": AUPRO_LIMIT,
            "froc_places": list(FROC_PLACES),
        },
        "cases": len(evaluation.cases),
        "patients": len({case.patient_id for case in evaluation.cases}),
        "failed_cases": [{"case_id": name, "problem": problem} for name, problem in evaluation.failed.items()],
        "figure_definitions": {
            name: {
                "title": metric.title,
                "level": metric.level,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "definition": metric.definition,
            }
            for name, metric in METRICS.items()
        },
        "methods": {
            method: {
                "threshold": asdict(threshold) if (threshold := evaluation.thresholds.get(method)) else None,
                "figures": _estimates(evaluation.estimates(method)),
            }
            for method in evaluation.methods
        },
        "differences": [
            {"method": first, "reference": other, "figures": _estimates(evaluation.differences(first, other))}
            for other in others
        ],
        "curves": {
            method: {
                name: {"x": curve.x.tolist(), "y": curve.y.tolist()}
                for name, curve in curves_of(pooled).items()
                if name.partition("_")[0] in {METRICS[metric].level for metric in evaluation.metrics}
            }
            for method, pooled in evaluation.pooled.items()
        },
    }


def case_rows(evaluation: AnomalyEvaluation) -> list[dict[str, Any]]:
    """Makes a row for each method and case.

    Args:
        evaluation: the evaluation.

    Returns:
        Rows of names, volumes in ml, metrics of the case, and what was found in it; ``None`` where not defined.
    """
    rows = []
    has_masks = any(METRICS[name].needs_masks for name in evaluation.metrics)
    for method, cases in evaluation.statistics.items():
        left_out = np.full(len(cases), np.nan)
        metrics = {
            name: evaluation.per_case(method, name) if name in evaluation.metrics else left_out for name in CASE_METRICS
        }
        for index, case in enumerate(cases):
            flagged = case.flagged
            lesions = flagged.findings.lesions if flagged and has_masks else None
            rows.append(
                {
                    "method": method,
                    "case_id": case.case_id,
                    "patient_id": case.patient_id,
                    "brain_ml": case.brain_volume,
                    "lesion_ml": case.lesion_volume if has_masks else None,
                    "predicted_ml": (flagged.normal + flagged.lesion) * case.voxel_volume if flagged else None,
                    **{name: _defined(values[index]) for name, values in metrics.items()},
                    "lesions": lesions.targets if lesions else None,
                    "lesions_found": len(lesions.found) if lesions else None,
                    "false_positives": len(lesions.false_alarms) if lesions else None,
                    "volume_score": _defined(case.volume_score),
                }
            )
    return rows


def slice_rows(evaluation: AnomalyEvaluation) -> list[dict[str, Any]]:
    """Makes a row for each method, case and slice.

    Args:
        evaluation: the evaluation.

    Returns:
        Rows of names, index and relative height of the slice, its voxels and its score; ``None`` where not defined.
    """
    return [
        {
            "method": method,
            "case_id": case.case_id,
            "patient_id": case.patient_id,
            **{name: _defined(column[index]) for name, column in case.slices.items()},
        }
        for method, cases in evaluation.statistics.items()
        for case in cases
        for index in range(len(case.slices["score"]))
    ]


def write_report(
    evaluation: AnomalyEvaluation,
    output_dir: PathLike,
    description: str | None = None,
    scans: Sequence[str] = (),
    unfinished: Sequence[Path] = (),
    self_contained: bool = False,
) -> dict[str, Any]:
    """Writes ``report.json``, ``cases.csv``, ``slices.csv`` and ``report.html``.

    Files of an earlier report are replaced when all of the new one are written; ``report.json`` goes first and comes
    last, so that where it is, a killed program left it whole with its tables.

    Args:
        evaluation: the evaluation.
        output_dir: folder to write to.
        description: what was evaluated, in words.
        scans: names of the cases that `write_case` wrote to the folder ``viewer`` in ``output_dir``; the page lets one
            scroll through them.
        unfinished: folders in ``output_dir`` whose files, such as those of the viewer, take their places in it together
            with the report's, see :func:`~ssmctb_monai.files.unfinished_folder`.
        self_contained: whether the page holds the scans itself, as one file to pass on, in place of the folder
            ``viewer``: their files in ``unfinished`` go into it.

    Returns:
        The report.

    Raises:
        ValueError: when there is no case.
    """
    report, cases, slices = build_report(evaluation, description), case_rows(evaluation), slice_rows(evaluation)
    page = render_html(
        report, cases, slices, evaluation.views, _embedded(scans, unfinished) if self_contained else scans
    )
    with whole_files(Path(output_dir), "report.json", *unfinished) as folder:
        (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_csv(list(cases[0]), cases, folder / "cases.csv")
        columns = ["method", "case_id", "patient_id", *evaluation.cases[0].slices]
        write_csv(columns, slices, folder / "slices.csv")
        (folder / "report.html").write_text(page, encoding="utf-8")
    return report


def _embedded(scans: Sequence[str], unfinished: Sequence[Path]) -> dict[str, str]:
    """Reads the scans of the viewer, and removes their folders."""
    files = {file.stem: file for folder in unfinished for file in (folder / VIEWER).glob("*.js")}
    embedded = {name: read_case(files[name]) for name in scans}
    for folder in unfinished:
        shutil.rmtree(folder / VIEWER, ignore_errors=True)
    return embedded


def format_report(report: Mapping[str, Any]) -> str:
    """Makes a table of a report for the terminal.

    Args:
        report: report of :func:`build_report`.

    Returns:
        A line a metric: its values with their intervals for each method, and the paired differences.
    """
    columns = {name: method["figures"] for name, method in report["methods"].items()}
    columns |= {f"{item['method']} - {item['reference']}": item["figures"] for item in report["differences"]}
    lines = [["", *columns]]
    level = None
    for name, definition in report["figure_definitions"].items():
        if definition["level"] != level:
            level = definition["level"]
            lines.append([level.upper(), *("" for _ in columns)])
        unit = f" ({definition['unit']})" if definition["unit"] else ""
        lines.append([f"  {definition['title']}{unit}", *(_cell(metrics[name]) for metrics in columns.values())])
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    table = ["   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    thresholds = [
        f"Threshold of {name}: {method['threshold']['value']:.4g} ({method['threshold']['source']})."
        for name, method in report["methods"].items()
        if method["threshold"]
    ]
    level_of_intervals = f"{100 * report['settings']['confidence']:g} %"
    head = f"{report['cases']} cases of {report['patients']} patients, {level_of_intervals} intervals"
    return "\n".join([head, "", *table, "", *thresholds])


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    left_out = Estimate(None, None, "it was left out of this evaluation")
    every = {name: estimates.get(name, left_out) for name in METRICS}
    return {name: {**asdict(item), "interval": item.interval and list(item.interval)} for name, item in every.items()}


def _defined(value: Any) -> Any:
    """Turns a NumPy number into a plain one, and what is not finite into ``None``."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _cell(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    interval = f" [{', '.join(_number(end) for end in estimate['interval'])}]" if estimate["interval"] else ""
    return _number(estimate["value"]) + interval


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _failures(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {problem}" for name, problem in failed.items()) or "none was added"
