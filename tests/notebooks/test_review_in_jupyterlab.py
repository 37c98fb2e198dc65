"""A reader's way through notebook 03: JupyterLab, in a browser."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

import nbformat
import nibabel
import numpy as np
import pytest
from scipy import ndimage

from ssmctb_monai.data import make_demo_dataset

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.process

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "03_review_heatmaps.ipynb"
CASES = ("DemoBraTS_00010", "DemoBraTS_00011")
PATIENCE = 60_000  # ms, for JupyterLab and a kernel on a busy machine


def request(address, content=None):
    """Asks JupyterLab's server, or tells it something."""
    data = None if content is None else json.dumps(content).encode()
    with urllib.request.urlopen(address, data) as answer:
        return json.load(answer)


def answers(address):
    try:
        return request(f"{address}/api/status")
    except OSError:  # not yet
        return None


@pytest.fixture
def maps(tmp_path):
    """Maps of two demo patients: bright places of their FLAIR."""
    for case in CASES:
        flair = nibabel.load(make_demo_dataset() / case / f"{case}_flair.nii.gz")
        smooth = ndimage.gaussian_filter(flair.get_fdata(dtype=np.float32), 2)
        (tmp_path / "maps").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(smooth / smooth.max(), flair.affine), tmp_path / "maps" / f"{case}.nii.gz")
    return tmp_path / "maps"


@pytest.fixture
def lab(tmp_path, maps):
    """Address of a JupyterLab with the notebook set to these maps."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "bundles").mkdir()  # where the notebook looks for them; saved maps need none
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += f"\nMAPS_DIR = {str(maps)!r}"
    notebook.cells = [cell for cell in notebook.cells if "view_3d(widget" not in cell.source]  # no WebGL 2 here
    nbformat.write(notebook, folder / NOTEBOOK.name)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--port={port}", "--port-retries=0", "--ip=127.0.0.1"]
    options += ["--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}"]
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(address):
            assert server.poll() is None, (tmp_path / "lab.log").read_text()
            time.sleep(0.5)
        # JupyterLab asks for a kernel when cells are run before it has one
        session = {"path": NOTEBOOK.name, "name": NOTEBOOK.name, "type": "notebook", "kernel": {"name": "python3"}}
        request(f"{address}/api/sessions", session)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture
def notebook(page, lab):
    """The notebook, all cells run, with the first case on the screen."""
    page.set_default_timeout(PATIENCE)
    page.goto(f"{lab}/lab/tree/{NOTEBOOK.name}?reset")
    run_all(page)
    shown(page, CASES[0])
    return page


def run_all(page):
    """Runs all cells; JupyterLab loses the command, or asks for a kernel, while it is not quite ready."""
    for _ in range(6):
        if (answer := page.locator(".jp-Dialog button.jp-mod-accept")).count():
            answer.click()
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        with suppress(playwright.TimeoutError):  # a question came between
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=10_000)
            page.get_by_text("Run All Cells", exact=True).click(timeout=10_000)
        page.wait_for_timeout(3_000)
        if page.locator(".jp-InputPrompt", has_text="[*]:").count():
            return
    raise TimeoutError("JupyterLab runs no cells")


def shown(page, case):
    page.locator(".hv-verdict b", has_text=f"Case {case}").wait_for()
    page.locator(".hv-candidates tbody tr").first.wait_for()


def picture(page, view="axial"):
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate("view => document.querySelector(`canvas[data-view=${view}]`).toDataURL()", view)


def rows(maps):
    with (maps / "review.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def saved(page):
    page.locator(".hv-saved", has_text="Saved").wait_for()


def test_a_reader_reviews_two_cases(notebook, maps):
    page = notebook
    before = picture(page)
    slider = page.get_by_label("Axial slice, from the feet up")
    slider.fill(str(int(slider.input_value()) - 12))
    assert picture(page) != before

    page.locator("label", has_text="Image").locator("select").select_option("t1")
    before = picture(page)
    page.locator("label", has_text="Image").locator("select").select_option("t2")
    page.wait_for_function(
        "before => document.querySelector('canvas[data-view=axial]').toDataURL() !== before", arg=before
    )

    many = page.locator(".hv-candidates h4").inner_text()
    page.get_by_label("Threshold as a number").fill("0.9")
    page.keyboard.press("Enter")
    page.get_by_text("at or above 0.9").wait_for()
    assert page.locator(".hv-candidates h4").inner_text() != many

    page.locator("canvas[data-view=axial]").click()
    for key in ("d", "d", "x", "b", "y", "m"):  # commands of JupyterLab
        page.keyboard.press(key)
    page.get_by_role("button", name="Next not reviewed").focus()
    page.keyboard.press("7")
    page.locator("label", has_text="Image").locator("select").focus()
    page.keyboard.press("x")
    page.locator("canvas[data-view=axial]").focus()
    page.keyboard.press("n")
    page.keyboard.press("7")
    saved(page)
    (row,) = rows(maps)
    assert (row["case_id"], row["verdict"], row["threshold"]) == (CASES[0], "accept", "0.9")
    assert f"voxel ({row['voxel_i']}, {row['voxel_j']}, {row['voxel_k']})" in page.locator(".hv-status").inner_text()

    page.get_by_label("Comment on the case").fill("vessel, no tumour: „hell“")
    page.get_by_role("button", name="reject the case").click()
    page.get_by_text("1 of 2 reviewed").wait_for()
    assert [(row["verdict"], row["comment"]) for row in rows(maps)][1] == ("reject", "vessel, no tumour: „hell“")

    page.get_by_role("button", name="Next not reviewed").click()
    shown(page, CASES[1])
    assert page.locator('.hv-judge button[aria-pressed="true"]').count() == 0
    page.get_by_role("button", name="unsure the case").click()
    page.get_by_text("2 of 2 reviewed").wait_for()
    assert [row["case_id"] for row in rows(maps) if not row["threshold"]] == list(CASES)
    assert page.locator(".jp-Cell").count() == len(nbformat.read(NOTEBOOK, as_version=4).cells) - 1  # no key cut a cell


def test_verdicts_outlive_the_kernel(notebook, maps, lab):
    page = notebook
    page.get_by_role("button", name="accept the case").click()
    page.get_by_text("1 of 2 reviewed").wait_for()
    (kernel,) = request(f"{lab}/api/kernels")
    subprocess.run(["pkill", "-KILL", "-f", kernel["id"]], check=True)
    page.get_by_label("Comment on the case").fill("too late")
    page.get_by_text("Not saved").wait_for()
    assert [row["comment"] for row in rows(maps)] == [""]

    page.get_by_role("button", name="Ok").click()  # JupyterLab says that the kernel died
    run_all(page)
    page.get_by_text("1 of 2 reviewed").last.wait_for()
    shown(page, CASES[1])  # goes on with the one that is left
    page.get_by_role("button", name="Previous case").last.click()
    shown(page, CASES[0])
    assert page.get_by_role("button", name="accept the case").last.get_attribute("aria-pressed") == "true"
