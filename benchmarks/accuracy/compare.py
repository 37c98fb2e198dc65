"""Prints paired differences between two rows, from the runs that are kept beside the results.

python -m benchmarks.accuracy compare ROW OTHER [--iterations 400]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.accuracy import results
from benchmarks.accuracy.runs import existing_runs
from benchmarks.accuracy.scores import method_name
from ssmctb_monai.metrics import ResampledMetrics, difference_over_folds

COMPARED = ("slice_auroc", "pixel_average_precision", "best_dice_oracle", "dice_at_threshold")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy compare", description=__doc__.splitlines()[0])
    for word in ("row", "other"):
        parser.add_argument(word, metavar=word.upper(), help="a row, or ROW:image for another score of it")
    parser.add_argument("--iterations", type=int, help="of short trials: their number of steps")
    settings = parser.parse_args(arguments)
    names = (settings.row, settings.other)
    ours, theirs = (kept_runs(name, settings.iterations) for name in names)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        parser.error(
            f"no fold and seed is kept of both: of {names[0]} there are {', '.join(sorted(ours)) or 'none'}, of "
            f"{names[1]} {', '.join(sorted(theirs)) or 'none'}{advice(names)}"
        )
    methods = [method_name(score_of(name)) for name in names]
    for seed in sorted({run.rpartition("_")[2] for run in shared}):
        of_seed = [run for run in shared if run.endswith(f"_{seed}")]
        difference = difference_over_folds(
            [ours[run] for run in of_seed], methods[0], [theirs[run] for run in of_seed], methods[1]
        )
        print(f"{names[0]} minus {names[1]}, {', '.join(of_seed)}")
        for name in COMPARED:
            estimate = difference.get(name)
            if estimate is not None and estimate.value is not None and estimate.interval is not None:
                print(f"  {name:26} {estimate.value:+.3f} [{estimate.interval[0]:+.3f}, {estimate.interval[1]:+.3f}]")


def advice(names: Sequence[str]) -> str:
    """Says with which numbers of steps there are runs of both rows.

    Args:
        names: names of the rows, as in `kept_runs`.
    """
    steps = sorted(int(folder.name.partition("_")[0]) for folder in results.RESULTS.glob("*_steps"))
    found = [each for each in (None, *steps) if set.intersection(*(set(kept_runs(name, each)) for name in names))]
    words = ["no --iterations" if each is None else f"--iterations {each}" for each in found]
    return f"; there are runs of both with {' or '.join(words)}" if words else ""


def score_of(name: str) -> str:
    """Returns the score that a name asks for.

    Example:
        >>> score_of("brats2d"), score_of("brats2d:image")
        ('model', 'image')
    """
    return name.partition(":")[2] or "model"


def kept_runs(name: str, iterations: int | None) -> dict[str, ResampledMetrics]:
    """Reads the kept runs of a row.

    Args:
        name: name of the row, and its score behind a colon.
        iterations: as in `Run`.

    Returns:
        Metrics and their resamples, by ``foldF_seedK``.
    """
    score = score_of(name)
    runs = existing_runs(name.partition(":")[0], results.RESULTS, iterations)
    files = {run.folder.name: run.metrics_file(score) for run in runs}
    return {run: ResampledMetrics.load(file) for run, file in files.items() if file.is_file()}
