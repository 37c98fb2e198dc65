"""Writes the accuracy tables into the pages of the docs, and some of their rows into the README, from the results.

python -m benchmarks.accuracy table [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.accuracy.results import FORMER, OTHER_FOLDS, load_results
from benchmarks.accuracy.rows import ANOMALY_ROWS, BLOCK_STUDY, ROWS, SEQUENCE_SYSTEMS
from benchmarks.accuracy.runs import recipe
from ssmctb_monai.files import whole_file
from ssmctb_monai.metrics import METRICS

ROOT = Path(__file__).parents[2]
BEGIN = "<!-- accuracy table: begin, written by `python -m benchmarks.accuracy table` -->"
END = "<!-- accuracy table: end -->"
COLUMNS = {
    "slice_auroc": "slice AUROC",
    "slice_auroc_position_matched": "position-matched",
    "pixel_average_precision": "voxel AP",
    "best_dice_oracle": "best Dice (oracle)",
    "dice_at_threshold": "Dice at the label-free threshold",
    "slice_false_alarm_share": "lesion-free slices that fire",
}
REGIONS = {  # what the literature on videos gives besides
    "slice_auroc_macro": "slice AUROC, mean of the scans",
    "rbdc_of_boxes": "RBDC of boxes",
    "tbdc_of_boxes": "TBDC of boxes",
    "rbdc": "RBDC at the label-free threshold",
    "tbdc": "TBDC at the label-free threshold",
}
HIGHLIGHTS = {  # results in the README, by recipe, row and score, and what they are called there
    ("", "brats2d", "image"): "FLAIR itself, no network",
    ("", "brats2d", "model"): "DRAEM 2D, SSMCTB (brats2d)",
    (FORMER, "brats2d-none", "model"): "former recipe: DRAEM 2D, no block",
    (FORMER, "brats2d", "model"): "former recipe: DRAEM 2D, SSMCTB",
    (FORMER, "brats3d", "model"): "former recipe: DRAEM 3D, SSMCTB",
    (FORMER, "lgg2d", "image"): "FLAIR itself, no network",
    (FORMER, "lgg2d", "model"): "former recipe: DRAEM 2D, SSMCTB, trained on LGG",
}
HIGHLIGHTED_COLUMNS = [name for name in COLUMNS if name != "slice_auroc_position_matched"]
SHORT = recipe(400)
SEQUENCES = "docs/sequences.md"
ANOMALIES = "docs/anomalies.md"
SYSTEM_PAGES = {  # of short trials, by the overlay of a system
    **dict.fromkeys((*SEQUENCE_SYSTEMS, "ssmtl"), SEQUENCES),
    **dict.fromkeys(("nsa", "fastvit_nsa", "cutpaste", "cutpaste_classifier"), ANOMALIES),
    "ssm": "docs/ssm.md",
}
UNKNOWN: Mapping[str, Any] = {"value": None, "interval": None}  # of a run that was kept before a metric was shown
OF_EACH_SEED = ("slice_auroc", "pixel_average_precision")


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Makes the tables.

    Args:
        results: results of the rows.

    Returns:
        Markdown: metrics of the rows with all folds, beside the baseline of their data, over all folds and without that
        of the decisions; differences, also those of rows with some of the folds; and how training went. Nothing without
        results.
    """
    if not results:
        return ""
    lines = [*_head("data, modalities", "method", *COLUMNS.values()), *_metrics(results, "all")]
    if chosen := list(_metrics(results, OTHER_FOLDS)):
        lines += ["", f"{OTHER_FOLDS.capitalize()}, on which the recipe was chosen:", ""]
        lines += [*_head("data, modalities", "method", *COLUMNS.values()), *chosen]
    lines += _differences(results)
    lines += [
        "",
        "Training, how far slice AUROC on the training patients moves in its last third, and each seed's means:",
        "",
    ]
    lines += [
        *_head("data, modalities", "method", "minutes", "spread", "seed: slice AUROC, voxel AP"),
        *_trainings(results),
    ]
    return "\n".join(lines)


def trials(results: Sequence[Mapping[str, Any]], of_regions: bool = False) -> str:
    """Makes the tables of short trials, which need not have all folds.

    Args:
        results: results of the rows.
        of_regions: whether to add a table of `REGIONS`.

    Returns:
        Markdown: metrics of the rows over their folds and seeds, beside the baseline; differences. Nothing without
        results.
    """
    if not results:
        return ""
    results = [{**result, "title": f"{result['title']}, {_seeds(result)}"} for result in results]
    lines = [*_head("data, modalities", "method", *COLUMNS.values()), *_metrics(results, "all", partly=True)]
    if of_regions:
        lines += ["", "By scan and by region:", "", *_head("data, modalities", "method", *REGIONS.values())]
        lines += _metrics(results, "all", partly=True, columns=REGIONS)
    return "\n".join([*lines, *_differences(results)])


def highlights(results: Sequence[Mapping[str, Any]]) -> str:
    """Makes the README's table.

    Args:
        results: results of the rows, of both recipes.

    Returns:
        Markdown: metrics of those of `HIGHLIGHTS` that have all folds.
    """
    whole = {
        (result["recipe"], result["row"], result["score"]): result for result in results if not result["missing_folds"]
    }
    lines = _head("data", "method", *(COLUMNS[name] for name in HIGHLIGHTED_COLUMNS))
    data = ""
    for name in [name for name in HIGHLIGHTS if name in whole]:
        result = whole[name]
        head = "" if result["data"] == data else f"{result['data']} ({result['number_of_cases']} cases)"
        data = result["data"]
        metrics = result["means"]["all"]["figures"]
        lines.append(_line(head, HIGHLIGHTS[name], [_cell(metrics[column]) for column in HIGHLIGHTED_COLUMNS]))
    return "\n".join(lines)


def page_of_trials(row: str) -> str:
    """Returns the page that has a row's short trials.

    Args:
        row: name of the row.

    Example:
        >>> page_of_trials("brats2d-study_none")
        'docs/block_study.md'
    """
    if any(row == f"brats2d-study_{name}" for name in BLOCK_STUDY):
        return "docs/block_study.md"
    if row.endswith(tuple(ANOMALY_ROWS)):
        return ANOMALIES
    return next((SYSTEM_PAGES[name] for name in ROWS[row].overlays if name in SYSTEM_PAGES), "docs/ablation.md")


def _trials_on(page: str) -> Callable[[Sequence[Mapping[str, Any]]], str]:
    def content_of(results: Sequence[Mapping[str, Any]]) -> str:
        names = {result["row"] for result in results if page_of_trials(result["row"]) == page}
        subtracted = {ROWS[name].reference for name in names} - names
        chosen = [
            result
            for result in results
            if result["row"] in names or (result["row"] in subtracted and result["score"] == "model")
        ]
        return trials(chosen, of_regions=page == SEQUENCES)

    return content_of


# What is written into a page, from the results of which recipes
PAGES = {
    "README.md": (highlights, ("", FORMER)),
    "docs/results.md": (tables, ("",)),
    "docs/results_lesion_free.md": (tables, (FORMER,)),
    **{page: (_trials_on(page), (SHORT,)) for page in dict.fromkeys(map(page_of_trials, ROWS))},
}


def updated(text: str, content: str) -> str:
    """Replaces the tables in a text.

    Args:
        text: text with both markers.
        content: tables, or nothing.

    Returns:
        The text with the tables between its markers.

    Raises:
        ValueError: when the markers are not there once, in their order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise ValueError(f"The tables belong between one line {BEGIN} and one line {END}.")
    return "\n".join([before + BEGIN, *(["", content, ""] if content else []), END + after])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy table", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where a page is not up to date, and write nothing")
    is_check = parser.parse_args(arguments).check
    for name, (content_of, recipes) in PAGES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        new = updated(text, content_of([result for recipe in recipes for result in load_results(recipe)]))
        if is_check and new != text:
            sys.exit(f"The tables in {name} are not those of the results: python -m benchmarks.accuracy table")
        if new != text:
            with whole_file(page) as unfinished:
                unfinished.write_text(new, encoding="utf-8")


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _metrics(
    results: Sequence[Mapping[str, Any]], part: str, partly: bool = False, columns: Mapping[str, str] = COLUMNS
) -> Iterator[str]:
    """Rows of a data set behind its baseline; bold is what is better than that, with all of the interval."""
    for data in dict.fromkeys(result["data"] for result in results):
        group = [result for result in results if result["data"] == data and (partly or not result["missing_folds"])]
        if not group:
            continue
        baseline = group[0]["means"][part]["baseline"]
        modality = data.rpartition(", ")[2].partition(" + ")[0]
        cells = [_cell(baseline.get(name, UNKNOWN)) for name in columns]
        yield _line(f"{data} ({group[0]['number_of_cases']} cases)", f"threshold on {modality}", cells)
        for result in group:
            means = result["means"][part]
            differences = means["difference_to_baseline"]
            cells = [
                _cell(means["figures"].get(name, UNKNOWN), is_bold=_is_better(name, differences.get(name, UNKNOWN)))
                for name in columns
            ]
            yield _line("", result["title"] + _extent(result), cells)


def _differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of differences, with its heading; nothing where there are none."""
    lines = list(_difference_rows(results))
    head = [
        "",
        "Differences, on the same folds and seeds:",
        "",
        *_head("data, modalities", "method", "minus", *COLUMNS.values()),
    ]
    return [*head, *lines] if lines else []


def _difference_rows(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Differences to other results; bold is what is not 0, whichever way."""
    for data in dict.fromkeys(result["data"] for result in results):
        head = data
        for result in results:
            differences = result["means"]["all"].get("difference_to_reference")
            if result["data"] != data or differences is None:
                continue
            cells = [_cell(differences[name], is_bold=_excludes_0(differences[name]), sign="+") for name in COLUMNS]
            yield _line(head, result["title"] + _extent(result), result["reference"], cells)
            head = ""


def _trainings(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Time of the trainings of each row, the largest spread of a metric in the last third of one, and seeds apart."""
    for result in results:
        runs = result["runs"]
        if result["score"] != "model":
            continue
        minutes = sorted(run["training_seconds"] / 60 for run in runs)
        spreads = [run["spread_of_last_third"]["slice_auroc"] for run in runs if run["spread_of_last_third"]]
        seeds = [
            f"{seed}: " + ", ".join(f"{_mean_of(result, seed, name):.3f}" for name in OF_EACH_SEED)
            for seed in result["seeds"]
        ]
        cells = [
            " to ".join(dict.fromkeys(f"{each:.0f}" for each in (minutes[0], minutes[-1]))),
            f"{max(spreads):.3f}" if spreads else "-",
            "; ".join(seeds),
        ]
        yield _line(result["data"], result["title"] + _extent(result), cells)


def _mean_of(result: Mapping[str, Any], seed: int, name: str) -> float:
    """Mean over the folds of a network's metric with one seed."""
    return fmean(run["figures"]["model"][name] for run in result["runs"] if run["seed"] == seed)


def _seeds(result: Mapping[str, Any]) -> str:
    return f"seed{'s' * (len(result['seeds']) > 1)} {', '.join(map(str, result['seeds']))}"


def _extent(result: Mapping[str, Any]) -> str:
    """Which folds there are, where that is not all."""
    if not result["missing_folds"]:
        return ""
    folds = sorted({run["fold"] for run in result["runs"]})
    return f" (fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))} alone)"


def _excludes_0(estimate: Mapping[str, Any]) -> bool:
    return estimate["interval"] is not None and (estimate["interval"][0] > 0 or estimate["interval"][1] < 0)


def _is_better(name: str, difference: Mapping[str, Any]) -> bool:
    return _excludes_0(difference) and (difference["value"] > 0) == METRICS[name].higher_is_better


def _cell(estimate: Mapping[str, Any], is_bold: bool = False, sign: str = "") -> str:
    if estimate["value"] is None:
        return "-"
    value = f"{estimate['value']:{sign}.3f}"
    interval = f" [{', '.join(f'{end:{sign}.3f}' for end in estimate['interval'])}]" if estimate["interval"] else ""
    return (f"**{value}**" if is_bold else value) + interval


def _line(*cells: Any) -> str:
    *names, values = cells
    return f"| {' | '.join([*names, *values])} |"
