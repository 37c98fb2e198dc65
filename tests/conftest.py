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
