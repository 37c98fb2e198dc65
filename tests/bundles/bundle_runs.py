"""What the test files of the bundles share: small made cases, and the bundles' commands."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from monai.utils import ensure_tuple, set_determinism
from nibabel.orientations import axcodes2ornt, ornt_transform

ROOT = Path(__file__).parents[2]
BUNDLES = [ROOT / "bundles" / name for name in ("brats2d", "brats3d")]
CONFIGS = {"training": "train", "evaluating": "evaluate", "inference": "inference"}
LGG = BUNDLES[0] / "configs" / "lgg.json"
OVERLAYS = [  # what replaces the system of a bundle
    bundle / "configs" / path.name
    for bundle in BUNDLES
    for path in sorted((ROOT / "bundles/sources/systems").iterdir())
    if (bundle / "configs" / path.name).is_file()
]
in_2d, in_3d = (pytest.mark.parametrize("bundle", [name], indirect=True) for name in ("brats2d", "brats3d"))
WIDTHS = {f"system#network#{name}_width": 8 for name in ("reconstructive", "discriminative")}
ROI_SIZES = {"brats2d": [96, 96, 1], "brats3d": [32, 32, 32]}  # crops that fit into the made cases
AXIAL = {"brats2d": {"planes": ["axial"]}, "brats3d": {}}
OWN = {"modalities": ["flair", "t1ce"], "block": "sspcab"}  # what a training is told, and other workflows are not
EXTENT = np.array([96, 96, 80])  # mm
OBLIQUE = np.array([[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1]])
GRIDS: dict[int, dict[str, Any]] = {  # of the cases that are not stored as the others are
    1: {"spacing": (1.5, 1.5, 1.5), "axcodes": "LPS"},
    3: {"spacing": (2, 2, 2.5), "axcodes": "PIR"},
    5: {"spacing": (2, 2, 2), "rotation": OBLIQUE},
}


def write_case(
    folder: Path,
    name: str,
    spacing: Sequence[float] = (2, 2, 2),
    axcodes: str = "RAS",
    rotation: np.ndarray | None = None,
) -> None:
    """Noise in an ellipsoid; three of four cases have a lesion of 12 mm at the right."""
    shape = tuple(np.round(EXTENT / spacing).astype(int))
    rng = np.random.default_rng(int(name[-3:]))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    lesion = np.zeros(shape, bool)
    if int(name[-3:]) % 4:
        centre = 2 * rng.integers((39, 20, 15), (41, 28, 25))
        places = np.moveaxis(np.indices(shape), 0, -1) * spacing
        lesion = ((places - centre) ** 2).sum(axis=-1) <= 36
    brain = ((grid**2).sum(axis=0) < 0.95) | lesion
    images = {
        "flair": brain * rng.integers(300, 360, shape) + 80 * lesion,
        "t1ce": brain * rng.integers(200, 230, shape) - 60 * lesion,
        "seg": 4 * lesion,
    }
    affine = np.diag([*spacing, 1.0])
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ affine[:3, :3]
    for kind, image in images.items():
        path = folder / name / f"{name}_{kind}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
        nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), affine).as_reoriented(turn), path)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def command(bundle: str, run_id: str, overlay: str | None = None, **overrides: Any) -> list[str]:
    """The command that users copy, ``training``, ``evaluating`` or ``inference``, with overlay and overrides."""
    config = f"bundles/{bundle}/{CONFIGS[run_id]}.json"
    config = f"['{config}','bundles/{bundle}/configs/{overlay}.json']" if overlay else config
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", config, *words]


def run(bundle: str, run_id: str, overlay: str | None = None, **overrides: Any) -> subprocess.CompletedProcess[str]:
    words = command(bundle, run_id, overlay, **overrides)
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def run_on_two(run_id: str, *config_files: Path | str, **overrides: Any) -> subprocess.CompletedProcess[str]:
    """The command for two processes that users copy, with ``torchrun`` by its module."""
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", run_id, "--config_file", str([str(file) for file in config_files]), *words]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def start(bundle: str, run_id: str, **overrides: Any) -> subprocess.Popen[str]:
    """Starts the command; what it writes, errors among it, can be read line by line."""
    words = command(bundle, run_id, **overrides)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, cwd=ROOT, env=environment(), text=True, **streams)


@contextmanager
def workflows() -> Iterator[Callable[..., ConfigWorkflow]]:
    """Makes workflows as MONAI does, without its changes to the test's logging and generators."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]

    def make(config_files: Path | Sequence[Path], workflow_type: str, **overrides: Any) -> ConfigWorkflow:
        files = [str(file) for file in ensure_tuple(config_files)]
        made = ConfigWorkflow(config_file=files, workflow_type=workflow_type, logging_file=False, **overrides)
        made.initialize()
        return made

    try:
        yield make
    finally:
        set_determinism(None)
        root.setLevel(level)
        root.handlers[:] = handlers


def small(bundle: str) -> dict[str, Any]:
    """What makes a training of DRAEM quick."""
    return {"num_samples": 2, "roi_size": ROI_SIZES[bundle], **AXIAL[bundle], **WIDTHS}


def folders(folder: Path) -> dict[str, Path]:
    """The folders of training, so that nothing is written to the bundle."""
    return {f"{name}_dir": folder / name for name in ("ckpt", "output", "cache")}


def git_status() -> str | None:
    """State of the working tree; ``None`` where there is none."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout


def messages(error: BaseException | None) -> str:
    """What MONAI says of an expression, and what stands behind it."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__
    return "\n".join(found)
