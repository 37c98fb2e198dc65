"""The command ``ssmctb``, thin over the bundles; it imports PyTorch only when something is run."""

from ssmctb_monai.cli.commands import main

__all__ = ["main"]
