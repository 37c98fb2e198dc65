"""Trains and evaluates the rows of the accuracy tables, and writes their results.

python -m benchmarks.accuracy ROW [ROW ...] --dataset_dir BRATS
python -m benchmarks.accuracy table [--check]
python -m benchmarks.accuracy compare ROW OTHER
python -m benchmarks.accuracy failures
python -m benchmarks.accuracy transfer --data_dir SCANS
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.accuracy import compare, failures, table, transfer
from benchmarks.accuracy.dataset import FOLDS, Cases, prepare_cases
from benchmarks.accuracy.results import keep_run, restore_runs, results_file, write_results
from benchmarks.accuracy.rows import ROWS
from benchmarks.accuracy.runs import Run, check_configuration, evaluate, existing_runs, train
from benchmarks.accuracy.scores import SCORES

logger = logging.getLogger("benchmarks.accuracy")

COMMANDS = {"table": table.main, "compare": compare.main, "failures": failures.main, "transfer": transfer.main}


def main(arguments: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in COMMANDS:
        COMMANDS[words[0]](words[1:])
    else:
        run_rows(words)


def run_rows(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", metavar="ROW", help=f"some of {', '.join(ROWS)}, of one data set")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/accuracy"), help="folder of all that is not kept")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)), choices=range(FOLDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--iterations", type=int, help="number of training steps, for short trials with tables of their own"
    )
    parser.add_argument(
        "--score",
        default="model",
        choices=SCORES,
        help="what maps hold: the network's answer, also to the first modality alone, its input, or the error of its "
        "blocks, all or of a sub-network",
    )
    settings = parser.parse_args(arguments)
    if unknown := set(settings.rows) - set(ROWS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if len(data := {ROWS[name].data for name in settings.rows}) > 1:
        parser.error(f"rows of one data set at a time, these are of {' and '.join(sorted(data))}")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)

    work_dir = settings.work_dir.absolute()

    @cache
    def cases_of(modalities: Sequence[str]) -> Cases:
        return prepare_cases(settings.dataset_dir, work_dir / "data" / data.copy().pop(), modalities)

    def runs_of(name: str) -> list[Run]:
        places = [(fold, seed) for seed in settings.seeds for fold in settings.folds]
        return [Run(name, fold, seed, work_dir, settings.iterations) for fold, seed in places]

    for name in settings.rows:  # what does not fit is to be known before hours of training
        begun = []
        for row in dict.fromkeys([name, ROWS[name].reference or name]):
            restore_runs(row, work_dir, settings.iterations)
            begun += existing_runs(row, work_dir, settings.iterations)
        for run in [*runs_of(name), *begun]:
            check_configuration(run, cases_of(ROWS[name].modalities))
    for name in settings.rows:
        cases = cases_of(ROWS[name].modalities)
        for run in runs_of(name):
            run.folder.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(run.folder / ".lock", timeout=0):
                    finish(run, cases, settings.score)
            except Timeout:
                logger.warning("%s: another process is at it.", run)
            else:
                write_results(name, settings.score, run.seed, work_dir, cases, run.iterations)
                keep_run(run, settings.score)
                file = results_file(name, settings.score, run.seed, run.iterations)
                logger.info("%s: done, see %s", run, file)


def finish(run: Run, cases: Cases, score: str) -> None:
    """Trains and evaluates what is not finished.

    Args:
        run: the run.
        cases: the cases.
        score: one of `SCORES`.
    """
    if not run.is_trained:
        logger.info("%s: training, see %s", run, run.folder / "training.log")
        train(run, cases)
    if not run.is_evaluated(score):
        logger.info("%s: evaluation", run)
        evaluate(run, cases, score)


if __name__ == "__main__":
    main()
