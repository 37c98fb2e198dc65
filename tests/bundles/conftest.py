from types import SimpleNamespace

import pytest
from bundle_runs import GRIDS, OWN, ROOT, folders, git_status, run, small, workflows, write_case


@pytest.fixture(scope="session", params=["brats3d", "brats2d"])
def bundle(request):
    """Folder of each bundle."""
    return ROOT / "bundles" / request.param


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory):
    """Eight cases in the layout of BRATS 2021, three of them stored on grids of their own."""
    folder = tmp_path_factory.mktemp("dataset")
    for index in range(8):
        write_case(folder, f"Made_{index:03d}", **GRIDS.get(index, {}))
    return folder


@pytest.fixture(scope="session")
def trained(bundle, dataset_dir, tmp_path_factory):
    """One epoch by the command that users copy; four patients, those of other grids among them, are for the test."""
    folder = tmp_path_factory.mktemp("trained")
    before = git_status()
    overrides = {"train#trainer#max_epochs": 1, "validation_share": 2, "test_share": 4, **small(bundle.name), **OWN}
    result = run(bundle.name, "training", dataset_dir=dataset_dir, **folders(folder), **overrides)
    return SimpleNamespace(folder=folder, result=result, before=before, after=git_status())


@pytest.fixture
def workflow():
    """Makes a bundle's workflow in this process."""
    with workflows() as make:
        yield make
