"""Prints the table of all benchmarks, row by row as they are measured.

python -m benchmarks [NAME ...] [--dataset_dir BRATS] [--before TABLE]
"""

from __future__ import annotations

import argparse
import importlib
import platform
from dataclasses import replace
from pathlib import Path

import monai
import torch

from benchmarks.measure import HEAD, device, ratios_of

NAMES = [
    "masked_convolution",
    "blocks",
    "anomalies",
    "cell_masks",
    "training",
    "inference",
    "commands",
    "scans",
    "cases",
    "evaluation",
    "imports",
    "review",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; as a default all")
    parser.add_argument("--dataset_dir", help="BRATS data for the training steps, instead of the demo data")
    parser.add_argument("--before", type=Path, help="file with a table printed before, whose ratios stand beside")
    settings = parser.parse_args()
    if unknown := set(settings.names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    before = ratios_of(settings.before) if settings.before else {}
    where = torch.cuda.get_device_name() if device().type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"{where}, {platform.machine()}, PyTorch {torch.__version__}, MONAI {monai.__version__}\n\n{HEAD}", flush=True
    )
    for name in settings.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        arguments = (settings.dataset_dir,) if name == "training" else ()
        for row in module.rows(*arguments):
            print(replace(row, before=before.get(row.what, "")), flush=True)


if __name__ == "__main__":
    main()
