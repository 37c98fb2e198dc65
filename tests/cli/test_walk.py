"""What a new user does, with the wheel alone, in an empty folder."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCAN = "Schädel, 2. Aufnahme.nii.gz"
pytestmark = pytest.mark.process


def run(*words, cwd, **variables):
    environment = {**os.environ, **variables}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, by way of the source distribution."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns("__pycache__", "trained", "eval", "cache", "*.egg-info")
    for name in ("ssmctb_monai", "bundles"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    (folder / "bundles/brats2d/trained").mkdir()
    (folder / "bundles/brats2d/trained/model.pt").touch()  # what a run leaves there
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    sdist = "from setuptools.build_meta import build_sdist; print(build_sdist('.'))"
    name = run(sys.executable, "-c", sdist, cwd=folder).stdout.split()[-1]
    words = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "wheel", folder / name)
    made = run(sys.executable, *words, cwd=folder)
    assert made.returncode == 0, made.stderr
    return next((folder / "wheel").glob("*.whl"))


@pytest.fixture(scope="module")
def ssmctb(wheel, tmp_path_factory):
    """The command of an environment that has the package from the wheel, and all else from this one."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "all_else.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    words = ("-m", "pip", "--python", venv / "bin/python", "install", "--no-deps", "--ignore-installed", wheel)
    installed = run(sys.executable, *words, cwd=venv)
    assert installed.returncode == 0, installed.stderr
    return lambda *words, cwd, **variables: run(venv / "bin/ssmctb", *map(str, words), cwd=cwd, **variables)


def test_wheel_has_the_bundles_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    in_git = subprocess.run(["git", "ls-files", "bundles"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    wanted = {f"ssmctb_monai/{name}" for name in in_git if name.startswith(("bundles/brats2d/", "bundles/brats3d/"))}
    if not wanted:
        pytest.skip("no clone to compare with")
    assert {name for name in names if name.startswith("ssmctb_monai/bundles/")} == wanted
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "bundles"))]


def test_help_does_not_wait_for_torch():
    code = "import sys; from ssmctb_monai.cli import main; main(['train', '--help'], standalone_mode=False); "
    made = subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], capture_output=True)
    assert made.returncode == 0, made.stderr


def test_walk(ssmctb, tmp_path):
    def done(*words):
        start = time.monotonic()
        made = ssmctb(*words, cwd=tmp_path)
        print(f"ssmctb {words[0]}: {time.monotonic() - start:.0f} s")  # shown by pytest -s
        assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
        return made.stdout.splitlines()

    places = np.indices((48, 56, 40))
    centre = np.array([24, 28, 20]).reshape(3, 1, 1, 1)
    brain = (((places - centre) / [[[[22]]], [[[26]]], [[[18]]]]) ** 2).sum(axis=0) < 1
    lesion = ((places - [[[[32]]], [[[28]]], [[[20]]]]) ** 2).sum(axis=0) < 25
    image = brain * np.random.default_rng(0).integers(300, 360, brain.shape) + 200 * lesion
    for path, array in ((tmp_path / SCAN, image), (tmp_path / "labels" / SCAN, lesion)):
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), np.diag([2, 2, 2, 1])), path)

    done("infer", SCAN, "--output_dir", "maps", "--save_mask")
    assert nibabel.load(tmp_path / "maps/maps" / SCAN).shape == image.shape
    assert done("report", "maps", "--dataset_dir", "labels")[-1] == "saved runs/report/report.html"
    done("review", "maps", "--no-open")
    assert (tmp_path / "maps/review.ipynb").is_file()

    small = ("--planes", "['axial']", "--system#network#reconstructive_width", 4)
    lines = done("train", "--max_epochs", 1, *small)
    assert lines[-1].startswith("next: ssmctb evaluate")
    assert (tmp_path / "runs/brats2d/trained/model.pt").is_file()
    done(*lines[-1].split()[2:], "--viewer", "false")
    assert (tmp_path / "runs/brats2d/eval/report.html").is_file()
