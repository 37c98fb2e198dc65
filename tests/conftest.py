import locale
import os
import shutil
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch's import, and for all that tests start: they share the cores

from ssmctb_monai.files import printable


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Processes of pytest-xdist send reports as UTF-8, which names of files need not be: one would end all tests."""
    report = yield
    report.sections = [(title, printable(text)) for title, text in report.sections]
    if report.longrepr and printable(str(report.longrepr)) != str(report.longrepr):
        report.longrepr = printable(str(report.longrepr))
    return report


@pytest.fixture(scope="session")
def real_data():
    """Folder with the real cases that are never part of the repository: ``brats`` and ``lgg``."""
    folder = Path(os.environ.get("SSMCTB_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "brats").is_dir():
        pytest.skip(f"no real cases in {folder}; name their folder in SSMCTB_DATA")
    return folder


@pytest.fixture(autouse=True)
def same_locale():
    """SimpleITK leaves the locale "C" behind when it writes DICOM, with which PyTorch cannot read its own files."""
    before = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, as Playwright drives it."""
    api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # root has no sandbox
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page whose scripts must not fail."""
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors, errors
