"""What a row shows with one seed: metrics of its runs, means over folds with intervals, and differences, as JSON."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.accuracy.dataset import FOLDS, Cases
from benchmarks.accuracy.rows import MODALITIES, ROWS
from benchmarks.accuracy.runs import Run, existing_runs, recipe
from benchmarks.accuracy.scores import FIRST, method_name
from ssmctb_monai.checkpoints import beside
from ssmctb_monai.files import write_json
from ssmctb_monai.metrics import Estimate, ResampledMetrics, difference_over_folds, mean_over_folds

RESULTS = Path(__file__).parent / "results"
FORMER = "lesion_free"  # folder of the results of the recipe before, by lesion-free slices and crops
SELECTION_FOLD = 0  # recipe decisions were taken on it
OTHER_FOLDS = f"without fold {SELECTION_FOLD}"
T = TypeVar("T")
SHOWN = (
    "slice_auroc",
    "slice_auroc_position_matched",
    "slice_position_matched_share",
    "slice_false_alarm_share",
    "pixel_auroc",
    "pixel_average_precision",
    "pixel_aupro",
    "best_dice_oracle",
    "dice_at_threshold",
    "lesion_sensitivity",
    "false_positives_per_volume",
    "slice_auroc_macro",
    "rbdc",
    "tbdc",
    "rbdc_of_boxes",
    "tbdc_of_boxes",
)


def results_file(name: str, score: str, seed: int, iterations: int | None = None) -> Path:
    """Returns the file of a row's results with one seed.

    Args:
        name: name of the row.
        score: ``"model"``, or another one.
        seed: seed of the trainings.
        iterations: as in `Run`.

    Example:
        >>> results_file("brats2d-both", "block", 1).relative_to(RESULTS)
        PosixPath('brats2d-both-block/seed1.json')
    """
    folder = name if score == "model" else f"{name}-{score.replace(':', '-')}"
    return RESULTS / recipe(iterations) / folder / f"seed{seed}.json"


def write_results(
    name: str, score: str, seed: int, work_dir: Path, cases: Cases, iterations: int | None = None
) -> None:
    """Writes the results of the finished runs of a row with one seed.

    Args:
        name: name of the row.
        score: ``"model"``, or another one.
        seed: seed of the trainings.
        work_dir: folder of all rows.
        cases: the cases.
        iterations: as in `Run`.

    Raises:
        ValueError: when no run is finished.
    """
    row = ROWS[name]
    runs = [run for run in existing_runs(name, work_dir, iterations) if run.seed == seed and run.is_evaluated(score)]
    if not runs:
        raise ValueError(f"No run of {name} with seed {seed} is finished below {work_dir}.")
    done = {run.fold for run in runs}
    used = [case for fold in cases.folds for case in fold]
    reference = _reference(name, score)
    others = [] if reference is None else existing_runs(reference, work_dir, iterations)
    others = [run for run in others if run.seed == seed and run.is_evaluated("model")]
    ours, theirs = _loaded(runs, score), _loaded(others, "model")
    method = method_name(score)
    content = {
        "row": name,
        "data": row.group,
        "bundle": row.bundle,
        "overlays": list(row.overlays),
        "overrides": runs[0].overrides,
        "score": score,
        "baseline": row.baseline,
        "reference": reference,
        "seed": seed,
        "missing_folds": sorted({*range(FOLDS)} - done),
        "number_of_cases": len(used),
        "number_of_patients": len({case.patient_id for case in used}),
        "repaired": list(cases.repaired),
        "left_out": {name: list(problems) for name, problems in cases.left_out.items()},
        "means": {
            "all": _means(ours, theirs, method, row.baseline, range(FOLDS)),
            OTHER_FOLDS: _means(
                ours, theirs, method, row.baseline, [fold for fold in range(FOLDS) if fold != SELECTION_FOLD]
            ),
        },
        "runs": [
            {
                "fold": run.fold,
                **_training(run),
                "figures": {
                    name: {key: float(values[0]) for key, values in _chosen(metrics.values[name]).items()}
                    for name in (method, row.baseline)
                },
            }
            for run, metrics in ours.items()
        ],
    }
    write_json(_rounded(content), results_file(name, score, seed, iterations))


def keep_run(run: Run, score: str) -> None:
    """Keeps a finished run beside its row's results, all but its network, for rows to come on other machines.

    Args:
        run: the run.
        score: ``"model"``, or another one.
    """
    folder = _kept(run)
    for name in ("configuration.json", "datalist.json", "trained.json", "models/model_record.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.folder / name, folder / name)
    file = run.metrics_file(score)
    shutil.copyfile(file.with_suffix(".json"), folder / file.with_suffix(".json").name)
    metrics = ResampledMetrics.load(file)
    shown = {
        method: {name: array.astype(np.float32) for name, array in _chosen(values).items()}
        for method, values in metrics.values.items()
        if method in (method_name(score), run.row.baseline)
    }
    replace(metrics, values=shown).save(folder / file.name)


def restore_runs(name: str, work_dir: Path, iterations: int | None = None) -> None:
    """Brings kept runs of a row back where there is no such run, finished but without their networks.

    Args:
        name: name of the row.
        work_dir: folder of all rows.
        iterations: as in `Run`.
    """
    for folder in sorted((RESULTS / recipe(iterations) / name).glob("fold*_seed*")):
        target = work_dir / recipe(iterations) / name / folder.name
        if not target.exists():
            shutil.copytree(folder, target)


def load_results(recipe: str = "") -> list[dict[str, Any]]:
    """Reads the results of all rows and seeds, and averages over the seeds.

    Args:
        recipe: folder of the results, `FORMER`, or nothing for those of the bundles as they are.

    Returns:
        Results in the order of the rows, those of the network before other scores; with what the tables call each one
        (``title``) and what is subtracted from it (``reference``).
    """
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((RESULTS / recipe).glob("*/seed*.json"))]
    order = list(ROWS)
    found.sort(key=lambda result: (order.index(result["row"]), result["score"] != "model", result["score"]))
    results = []
    for (name, score), of_seeds in groupby(found, key=lambda result: (result["row"], result["score"])):
        reference = _reference(name, score)
        titles = {
            "recipe": recipe,
            "title": _title(name, score),
            "reference": None if reference is None else _title(reference, "model"),
        }
        results.append({**mean_over_seeds(list(of_seeds)), **titles})
    return results


def mean_over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages the results of a row and score over the seeds that miss the fewest folds.

    Values are averaged, and so are the ends of their intervals, which takes the seeds' resamples, those of the same
    patients, to move as one: an interval is rather too wide than too narrow.

    Args:
        results: those of each seed.

    Returns:
        Results as those of a seed, with ``seeds`` in place of ``seed``; ``runs`` are those of all the seeds, each with
        its seed.
    """
    missing = min((result["missing_folds"] for result in results), key=len)
    chosen = [result for result in results if result["missing_folds"] == missing]
    runs = [{"seed": result["seed"], **run} for result in chosen for run in result["runs"]]
    means = {part: _average([result["means"][part] for result in chosen]) for part in chosen[0]["means"]}
    shared = {key: value for key, value in chosen[0].items() if key != "seed"}
    return {**shared, "seeds": [result["seed"] for result in chosen], "means": means, "runs": runs}


def spread(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Finds how far the validation's metrics wander over the last third of a training.

    Args:
        history: that of a training record: a dictionary of ``epoch`` and ``metrics`` each.

    Returns:
        Highest minus lowest value of each metric, over the epochs beyond two thirds of the last one; none where there
        is one such epoch only, or a value is not defined.

    Example:
        >>> spread([{"epoch": epoch, "figures": {"slice_auroc": epoch / 8}} for epoch in (2, 4, 5, 6)])
        {'slice_auroc': 0.125}
    """
    late = [item["figures"] for item in history if 3 * item["epoch"] > 2 * history[-1]["epoch"]]
    values = {name: [metrics[name] for metrics in late] for name in (late[0] if late else {})}
    return {name: max(found) - min(found) for name, found in values.items() if len(found) > 1 and None not in found}


def _kept(run: Run) -> Path:
    return RESULTS / run.folder.relative_to(run.work_dir)


def _loaded(runs: Sequence[Run], score: str) -> dict[Run, ResampledMetrics]:
    return {run: ResampledMetrics.load(run.metrics_file(score)) for run in runs}


def _average(contents: Sequence[Any]) -> Any:
    """Averages numbers at the same place; not defined where one is not. What only some have is averaged over these."""
    first = contents[0]
    if any(content is None for content in contents):
        return None
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for content in contents for key in content)
        return {key: _average([content[key] for content in contents if key in content]) for key in keys}
    if isinstance(first, list):
        return [_average(items) for items in zip(*contents, strict=True)]
    return sum(contents) / len(contents)


def _training(run: Run) -> dict[str, Any]:
    """What the training's record says of a run."""
    record = json.loads(beside(run.checkpoint, "record").read_text(encoding="utf-8"))
    trained = json.loads((run.folder / "trained.json").read_text(encoding="utf-8"))
    return {
        "epochs": record["epochs"],
        "training_seconds": record["seconds"],
        "device": trained["processor"] if record["device"] == "cpu" else record["device"],
        "threads": record["threads"],
        "versions": record["versions"],
        "spread_of_last_third": spread(record["history"]),
    }


def _means(
    ours: Mapping[Run, ResampledMetrics],
    theirs: Mapping[Run, ResampledMetrics],
    method: str,
    baseline: str,
    folds: Sequence[int],
) -> dict[str, Any] | None:
    """Means over the finished ones of some folds, and the difference to the reference where it has all of these."""
    chosen = {run.fold: metrics for run, metrics in ours.items() if run.fold in folds}
    if not chosen:
        return None
    runs = list(chosen.values())
    means: dict[str, Any] = {
        "figures": _shown(mean_over_folds(runs, method)),
        "baseline": _shown(mean_over_folds(runs, baseline)),
        "difference_to_baseline": _shown(difference_over_folds(runs, method, runs, baseline)),
    }
    references = {run.fold: metrics for run, metrics in theirs.items() if run.fold in chosen}
    if references.keys() == chosen.keys():
        means["difference_to_reference"] = _shown(
            difference_over_folds(runs, method, list(references.values()), "model")
        )
    return means


def _chosen(of_metrics: Mapping[str, T]) -> dict[str, T]:
    """What is shown, of the metrics that there are; runs that were kept before a metric was shown lack it."""
    return {name: of_metrics[name] for name in SHOWN if name in of_metrics}


def _shown(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        name: {"value": estimate.value, "interval": estimate.interval} for name, estimate in _chosen(estimates).items()
    }


def _reference(name: str, score: str) -> str | None:
    """Row whose network is subtracted; another score is compared with the network's own map."""
    return ROWS[name].reference if score == "model" else name


def _title(name: str, score: str) -> str:
    """What the tables call a row's score."""
    title = ROWS[name].title
    if score == "model":
        return title
    if score == "image":
        modality = MODALITIES[ROWS[name].modalities[0]]
        return f"{title.partition(',')[0]}, no network: {modality} itself, scaled, smoothed like the maps"
    if score == FIRST:
        return f"{title}: {MODALITIES[ROWS[name].modalities[0]]} alone"
    where = score.partition(":")[2]
    return f"{title}: error of its {where + ' block' if where else 'blocks'}"


def _rounded(content: Any) -> Any:
    """The same with numbers of four digits, and ``None`` for those that are not defined."""
    if isinstance(content, Mapping):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    if isinstance(content, float):
        return round(content, 4) if math.isfinite(content) else None
    return content
