"""Inferers."""

from ssmctb_monai.inferers.autocast import AutocastInferer
from ssmctb_monai.inferers.foreground import ForegroundInferer

__all__ = ["AutocastInferer", "ForegroundInferer"]
