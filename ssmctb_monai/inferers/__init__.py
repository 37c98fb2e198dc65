"""Inferers."""

from ssmctb_monai.inferers.autocast import AutocastInferer
from ssmctb_monai.inferers.foreground import ForegroundInferer
from ssmctb_monai.inferers.planes import PlanesInferer

__all__ = ["AutocastInferer", "ForegroundInferer", "PlanesInferer"]
