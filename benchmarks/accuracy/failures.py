"""Draws the shipped networks' worst demo cases for the bundles' model cards.

python -m benchmarks.accuracy failures [--work_dir runs/failures]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import monai
import numpy as np

from benchmarks.accuracy.rows import BUNDLES
from ssmctb_monai.data import make_demo_dataset
from ssmctb_monai.reports import evaluate_folders
from ssmctb_monai.visualize import find_maps, plot_montage


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy failures", description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/failures"))
    work_dir = parser.parse_args(arguments).work_dir.absolute()
    dataset_dir = make_demo_dataset()
    for bundle in ("brats2d", "brats3d"):
        results = work_dir / bundle
        monai.bundle.run(
            "inference",
            config_file=str(BUNDLES / bundle / "inference.json"),
            bundle_root=str(BUNDLES / bundle),
            dataset_dir=str(dataset_dir),
            output_dir=str(results),
        )
        evaluation = evaluate_folders({"model": results / "maps"}, dataset_dir, output_dir=results / "evaluation")
        cases = [case.case_id for case in evaluation.cases]
        precision = evaluation.per_case("model", "pixel_average_precision")  # NaN where there is no lesion
        highest = [case.slices["score"].max() if not case.lesion.total else -np.inf for case in evaluation.cases]
        items = {item["case_id"]: item for item in find_maps(results, dataset_dir)}
        for name, index in (("missed", int(np.nanargmin(precision))), ("false_alarm", int(np.argmax(highest)))):
            figure = plot_montage(items[cases[index]])
            figure.savefig(BUNDLES / bundle / "docs" / f"{name}.png", dpi=100, bbox_inches="tight")
            print(f"{bundle}, {name}: {cases[index]}, average precision {precision[index]:.3f}")
