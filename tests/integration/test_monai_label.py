"""MONAI Label's server, installed, started and asked by the commands of docs/howto/monai_label.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from ssmctb_monai.data import make_demo_dataset

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/howto/monai_label.md"


def commands(section):
    """The commands of a section of the page, one a line."""
    text = re.search(rf"^## {section}\n.*?^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return text[1].replace("\\\n", " ").splitlines()


def server_python():
    found = shutil.which("monailabel")
    return os.environ.get("MONAILABEL_PYTHON") or (found and str(Path(found).with_name("python")))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server on a free port, with a scan whose axes run in another order than the network's, and an empty one."""
    python = server_python()
    if not python:
        pytest.skip(f"no MONAI Label: install it as {PAGE.name} says, and name its Python in MONAILABEL_PYTHON")
    folder = tmp_path_factory.mktemp("monai_label")
    scans = folder / "scans"
    scans.mkdir()
    scan = nibabel.load(sorted(make_demo_dataset().glob("*/*_flair.nii.gz"))[-1])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PIR"))
    nibabel.save(scan.as_reoriented(turn), scans / "P1_flair.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), scans / "P2_flair.nii.gz")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def own(command):
        places = {"/path/to/server/bin/python": python, "/path/to": str(folder), ":8000": f":{port}"}
        for name, place in places.items():
            command = command.replace(name, place)
        return command

    *prepare, start = commands("Start")
    subprocess.run(["bash", "-ec", own("\n".join(prepare))], check=True)
    words = [*shlex.split(own(start)), "--port", port]
    with (folder / "log").open("w") as log, subprocess.Popen(words, env=environment, stdout=log, stderr=log) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            yield SimpleNamespace(
                address=address,
                info=info_of(address, process, folder / "log"),
                run=lambda command: subprocess.run(["bash", "-ec", own(command)], check=True),
                python=python,
                environment=environment,
                folder=folder,
            )
        finally:
            process.terminate()


def info_of(address, process, log):
    """What the server says of itself, as soon as it does."""
    for _ in range(120):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urlopen(f"{address}/info/") as answer:
                return json.load(answer)
        except URLError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def ask(server, model, image, **params):
    address = f"{server.address}/infer/{model}?{urlencode({'image': image, 'output': 'json'})}"
    with urlopen(address, data=urlencode({"params": json.dumps(params)}).encode()) as answer:
        return json.load(answer)


def assert_same(file, expected):
    image, other = nibabel.load(file), nibabel.load(expected)
    assert image.shape == other.shape
    np.testing.assert_array_equal(image.affine, other.affine)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(other.dataobj))


def inference(server, bundle):
    """What the bundle's own command makes of the scan, with the libraries of the server."""
    output = server.folder / bundle
    words = [server.python, "-m", "monai.bundle", "run", "inference", "--save_mask", "true"]
    words += ["--config_file", str(ROOT / f"bundles/{bundle}/inference.json"), "--bundle_root", f"bundles/{bundle}"]
    words += ["--dataset_dir", str(server.folder / "scans/P1_flair.nii.gz"), "--output_dir", str(output)]
    subprocess.run(words, cwd=ROOT, env=server.environment, check=True, capture_output=True)
    return output


def test_masks_maps_and_figures_are_those_of_inference(server):
    assert server.info["models"].keys() == {"brats2d", "brats3d"}
    assert server.info["labels"] == ["anomaly"]
    for command in commands("Ask"):
        server.run(command)
    scan = nibabel.load(server.folder / "scans/P1_flair.nii.gz")
    mask = nibabel.load(server.folder / "mask.nii.gz")
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}
    in_3d = inference(server, "brats3d")
    assert_same(server.folder / "mask.nii.gz", in_3d / "masks/P1.nii.gz")
    assert_same(server.folder / "map.nii.gz", in_3d / "maps/P1.nii.gz")
    header, row = (inference(server, "brats2d") / "summary.csv").read_text("utf-8-sig").splitlines()
    expected = dict(zip(header.split(","), row.split(","), strict=True))
    figures = json.loads((server.folder / "figures.json").read_text())
    assert figures.pop("label_names") == {"anomaly": 1}
    assert figures.keys() >= {"anomaly_score", "threshold", "flagged_ml", "slice"}
    assert {name: str(figure) for name, figure in figures.items()} == {name: expected[name] for name in figures}


@pytest.mark.parametrize(
    ("image", "params", "status", "reason"),
    [
        ("P2_flair", {}, 422, "P2"),
        ("P3_flair", {}, 404, "no such image"),
        ("P1_flair", {"result": "heatmap"}, 422, "only mask, map"),
    ],
)
def test_what_cannot_be_done_is_answered_with_the_reason(server, image, params, status, reason):
    with pytest.raises(HTTPError) as refused:
        ask(server, "brats3d", image, **params)
    assert refused.value.code == status
    assert reason in json.load(refused.value)["detail"]


def test_parameters_of_clients_do_not_reach_the_bundle(server):
    trace = server.folder / "evaluated"
    expression = f"$__import__('pathlib').Path({str(trace)!r}).touch()"
    figures = ask(server, "brats3d", "P1_flair", threshold=expression, device=expression, bundle_root=expression)
    assert figures["threshold"] == 0.5
    assert not trace.exists()
