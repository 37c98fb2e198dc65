"""One training and its evaluation: a row on one fold with one seed, in a folder from which both go on."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from benchmarks.accuracy.dataset import FOLDS, Cases, write_fold
from benchmarks.accuracy.rows import BUNDLES, ROWS, Row, settings_of, source_of
from benchmarks.accuracy.scores import FIRST, method_name, scoring_network
from ssmctb_monai.checkpoints import beside, load_state
from ssmctb_monai.files import checksum, write_json
from ssmctb_monai.handlers import EvaluationReport
from ssmctb_monai.metrics import ResampledMetrics, save_thresholds


@dataclass(frozen=True)
class Run:
    """A row on one fold with one seed.

    Args:
        name: name of the row.
        fold: index of the fold that is tested on.
        seed: seed of the training.
        work_dir: folder of all rows.
        iterations: number of training steps, that of the row's configuration as a default.
    """

    name: str
    fold: int
    seed: int
    work_dir: Path
    iterations: int | None = None

    def __str__(self) -> str:
        return f"{self.name}, fold {self.fold}, seed {self.seed}"

    @property
    def row(self) -> Row:
        """The row."""
        return ROWS[self.name]

    @property
    def folder(self) -> Path:
        """Folder of everything that the run writes, but the cache that runs share."""
        return self.work_dir / recipe(self.iterations) / self.name / f"fold{self.fold}_seed{self.seed}"

    @property
    def overrides(self) -> dict[str, Any]:
        """Ids of the training that the row changes."""
        return {**self.row.overrides, **({} if self.iterations is None else {"iterations": self.iterations})}

    @property
    def checkpoint(self) -> Path:
        """The trained network."""
        return self.folder / "models" / "model.pt"

    @property
    def is_trained(self) -> bool:
        """Whether the training came to its end."""
        return (self.folder / "trained.json").is_file()

    def metrics_file(self, score: str) -> Path:
        """Figures of the evaluation and their resamples.

        Args:
            score: ``"model"``, ``"image"``, ``"block"`` or ``"block:SUBNETWORK"``.
        """
        return self.folder / f"{score.replace(':', '-')}.npz"

    def is_evaluated(self, score: str) -> bool:
        """Whether there are metrics of the network, by the evaluation's present configuration.

        Args:
            score: as in :meth:`metrics_file`.
        """
        file = self.metrics_file(score).with_suffix(".json")
        return self.is_trained and file.is_file() and _read(file) == self.evaluation_configuration

    @property
    def evaluation_configuration(self) -> dict[str, Any]:
        """What an evaluation depends on, besides network and cases."""
        return _plain({"evaluate.json": settings_of(self.bundle / "evaluate.json")})

    @property
    def bundle(self) -> Path:
        """Folder of the row's bundle."""
        return BUNDLES / self.row.bundle


def recipe(iterations: int | None) -> str:
    """Returns the folder of runs and results, within that of all, which trainings of another length have to themselves.

    Args:
        iterations: number of training steps, if not that of the rows' configurations.

    Example:
        >>> recipe(400), recipe(None)
        ('400_steps', '')
    """
    return "" if iterations is None else f"{iterations}_steps"


def existing_runs(name: str, work_dir: Path, iterations: int | None = None) -> list[Run]:
    """Lists the runs of a row that have begun.

    Args:
        name: name of the row.
        work_dir: folder of all rows.
        iterations: as in `Run`.

    Returns:
        The runs by fold and seed.
    """
    seeds = {
        int(folder.name.rpartition("seed")[2]) for folder in (work_dir / recipe(iterations) / name).glob("fold*_seed*")
    }
    runs = [Run(name, fold, seed, work_dir, iterations) for fold in range(FOLDS) for seed in sorted(seeds)]
    return [run for run in runs if (run.folder / "configuration.json").is_file()]


def check_configuration(run: Run, cases: Cases) -> None:
    """Accepts a run that is new, or began with the present configuration.

    Args:
        run: the run.
        cases: the cases.

    Raises:
        ValueError: when the row has an id that its configuration has not, or iterations of which that makes no use, or
            the run began with another configuration.
    """
    file, configuration = run.folder / "configuration.json", _configuration(run, cases)
    unknown = {key.partition("#")[0] for key in run.overrides} - set(configuration["train.json"])
    files = ", ".join(file.name for file in run.row.config_files)
    if unknown:
        raise ValueError(f"{run.name}: {run.row.bundle} with {files} has no {', '.join(sorted(unknown))}.")
    if "iterations" in run.overrides and "@iterations" not in json.dumps(configuration["train.json"]):
        raise ValueError(f"{run.name}: {run.row.bundle} with {files} has max_epochs, and makes no use of iterations.")
    if not file.is_file():
        return
    before = _read(file)
    differing = [
        key
        for part, content in configuration.items()
        for key in sorted({*content, *before[part]})
        if content.get(key) != before[part].get(key)
    ]
    if differing:
        raise ValueError(
            f"{run} began with another configuration; now there differ: {', '.join(differing)}. Remove {run.folder} to "
            f"do it again, or the whole row, {run.folder.parent}."
        )


def train(run: Run, cases: Cases) -> None:
    """Trains a run's network, or goes on with an interrupted training; one that is finished is not done again.

    Args:
        run: the run.
        cases: the cases.

    Raises:
        RuntimeError: when the training fails; its log is named.
    """
    check_configuration(run, cases)
    if run.is_trained:
        return
    if not (run.folder / "configuration.json").is_file():
        write_fold(cases, run.fold, run.folder / "datalist.json")
        write_json(_configuration(run, cases), run.folder / "configuration.json")
    source = source_of(run.name)
    if source is None:
        _train(run, cases)
    else:
        _take_over(run, replace(run, name=source), cases)
    write_json({"processor": processor()}, run.folder / "trained.json")


def _overrides(run: Run, cases: Cases) -> dict[str, Any]:
    return {
        **_common(run, cases),
        "ckpt_dir": run.checkpoint.parent,
        "output_dir": run.checkpoint.parent,
        "cache_dir": run.work_dir / "cache",
        "seed": run.seed,
        "validation_share": 0,
        "tensorboard": False,
        "val_interval": 10**6,  # at the end alone, which gives the threshold; nothing else of validation is used
        "train#handler#validation#exec_at_start": False,
        "resume": (run.checkpoint.parent / "training.pt").is_file(),
        **run.overrides,
    }


def _train(run: Run, cases: Cases) -> None:
    log = run.folder / "training.log"
    code = run_training(run.row.config_files, _overrides(run, cases), log)
    if code:
        raise RuntimeError(
            f"{run}: training ended with exit code {code}, see {log}. The same command goes on behind its last epoch."
        )


def _take_over(run: Run, source: Run, cases: Cases) -> None:
    """Takes the network of another run; what it fits to lesion-free images is fitted anew, and its threshold is."""
    if not source.checkpoint.is_file():
        raise FileNotFoundError(
            f"{run} takes the network of {source}, and there is no {source.checkpoint}: run {source.name} first, with "
            "the same --work_dir."
        )
    parser = ConfigParser()
    parser.read_config([str(file) for file in run.row.config_files])
    for key, value in _overrides(run, cases).items():
        parser[key] = value
    parser.get_parsed_content("initialize")
    checkpoint = parser.get_parsed_content("train#handler#checkpoint")
    state = load_state(source.checkpoint, f"remove {source.folder} and run {source.name} again")
    resized = {name: own for name, own in checkpoint.network.named_buffers() if own.shape != state[name].shape}
    checkpoint.network.load_state_dict({**state, **resized})
    parser.get_parsed_content("validate#evaluator").run()
    checkpoint.model_path.parent.mkdir(exist_ok=True)
    torch.save(checkpoint.network.state_dict(), checkpoint.model_path)
    checkpoint.settings.save(checkpoint.model_path, checksum(checkpoint.model_path))
    save_thresholds(checkpoint.thresholds(), checkpoint.thresholds_path)
    shutil.copyfile(beside(source.checkpoint, "record"), checkpoint.record_path)


def run_training(config_files: Sequence[Path], overrides: Mapping[str, Any], log: Path) -> int:
    """Trains a bundle in a process of its own.

    Args:
        config_files: its train.json and overlays.
        overrides: ids and their values.
        log: file that the process's output is appended to.

    Returns:
        Exit code.
    """
    words = []
    for key, value in overrides.items():
        words += [f"--{key}", "$None" if value is None else str(value)]  # the command ignores a plain None
    files = str([str(file) for file in config_files])
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files, *words]
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def evaluate(run: Run, cases: Cases, score: str) -> None:
    """Evaluates a run's network on the cases of its fold; what is finished is not done again.

    Args:
        run: a run that is trained.
        cases: the cases.
        score: ``"model"`` for the network's map, ``"first"`` for that of the first modality alone, or what
            `scoring_network` takes, which has no label-free threshold.
    """
    if run.is_evaluated(score):
        return
    parser = ConfigParser()
    parser.read_config(str(run.bundle / "evaluate.json"))
    file = run.metrics_file(score)
    overrides = {
        **_common(run, cases),
        "ckpt_file": str(run.checkpoint),
        "output_dir": str(run.folder / file.stem),
        "viewer": False,
        "evaluation#settings#seed": run.fold,  # of the resamples, which are independent between folds
        "evaluation#settings#box_levels": 32,
    }
    if "network_def" in run.overrides:
        overrides["network_def"] = run.overrides["network_def"]
    if score == FIRST:
        overrides["modality_dropout"] = 1.0
    elif score != "model":
        overrides["raw_scores"] = True
    for key, value in overrides.items():
        parser[key] = value
    evaluator, evaluation = (parser.get_parsed_content(name) for name in ("evaluator", "evaluation"))
    if score not in ("model", FIRST):
        evaluator.networks = [scoring_network(network, score) for network in evaluator.networks]
        report = next(item for item in parser.get_parsed_content("handlers") if isinstance(item, EvaluationReport))
        report.maps = {method_name(score): report.maps.pop("model"), **report.maps}
        evaluation.thresholds.pop("model", None)
    evaluator.run()
    ResampledMetrics.of(evaluation).save(file)
    write_json(run.evaluation_configuration, file.with_suffix(".json"))


def processor() -> str:
    """Returns the name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _common(run: Run, cases: Cases) -> dict[str, Any]:
    return {
        "bundle_root": str(run.bundle),
        "dataset_dir": str(cases.root),
        "datalist_file": str(run.folder / "datalist.json"),
        "modalities": list(run.row.modalities),
    }


def _configuration(run: Run, cases: Cases) -> dict[str, dict[str, Any]]:
    """What a training depends on, as JSON has it."""
    return _plain(
        {
            "train.json": settings_of(*run.row.config_files),
            "overrides": {**run.overrides, "modalities": run.row.modalities},
            "cases": {
                f"cases of fold {index}": [case.case_id for case in part] for index, part in enumerate(cases.folds)
            },
        }
    )


def _plain(content: Any) -> Any:
    """The same as it comes back from a JSON file."""
    return json.loads(json.dumps(content))


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
