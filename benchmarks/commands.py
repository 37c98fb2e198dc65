"""CPU time of inference from the command to the map, and the time until the README's first command shows something."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from benchmarks.inference import scan
from benchmarks.measure import Row

GOALS = {2: ("≤ 2.5 s", "≤ 1 s"), 3: ("≤ 4 s", "≤ 2 s")}  # of the first scan and of each further one


def rows() -> Iterator[Row]:
    start_up = cpu_seconds(sys.executable, "-c", "import monai")
    with tempfile.TemporaryDirectory() as name:
        image = nibabel.Nifti1Image((1000 * scan()[0][0, 0].numpy()).astype(np.int16), np.eye(4))
        one, two = (write_scans(Path(name) / str(count), image, count) for count in (1, 2))
        for dims, (first_goal, further_goal) in GOALS.items():
            first, both = (
                cpu_seconds(
                    *(sys.executable, "-m", "ssmctb_monai", "infer", folder),
                    *("--dims", str(dims), "--output_dir", f"{folder}_maps{dims}"),
                )
                for folder in (str(one), str(two))
            )
            title = f"ssmctb infer --dims {dims}, CPU time of"
            yield Row(f"{title} one scan of 240x240x155", "import monai", first, first / start_up, first_goal)
            further = both - first
            yield Row(f"{title} a further scan", "import monai", further, further / start_up, further_goal)
        seconds, line = first_line(
            " INFO ",
            *(sys.executable, "-m", "monai.bundle", "run", "training"),
            *("--config_file", "bundles/brats3d/train.json", "--ckpt_dir", f"{name}/training"),
        )
        start_up, _ = first_line("imported", sys.executable, "-c", "import monai; print('imported')")
        yield Row(
            "first command of the README, to its first message",
            "import monai",
            seconds,
            seconds / start_up,
            "≤ 5 s",
            note=line.strip(),
        )


def write_scans(folder: Path, image: nibabel.Nifti1Image, count: int) -> Path:
    """Writes an image as some scans, and returns their folder."""
    folder.mkdir()
    for index in range(count):
        nibabel.save(image, folder / f"P{index}_flair.nii.gz")
    return folder


def cpu_seconds(*command: str) -> float:
    """CPU time of a command, of the user and the system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_line(text: str, *command: str) -> tuple[float, str]:
    """Time until a command prints a line with a text, and that line; the command is ended then."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        line = next(line for line in process.stdout or () if text in line)
        seconds = time.perf_counter() - start
        process.kill()
    return seconds, line
