"""The package as a whole."""

from importlib.metadata import version

import ssmctb_monai


def test_public_names_and_version():
    assert all(hasattr(ssmctb_monai, name) for name in ssmctb_monai.__all__)
    assert ssmctb_monai.__version__ == version("ssmctb_monai")
