import locale
import os
from pathlib import Path

import pytest


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
