"""Inferers."""

from ssmctb_monai.inferers.autocast import AutocastInferer
from ssmctb_monai.inferers.foreground import ForegroundInferer
from ssmctb_monai.inferers.planes import PlanesInferer
from ssmctb_monai.inferers.sequences import SequenceInferer
from ssmctb_monai.inferers.windows import EnsembleInferer, window_inferer

__all__ = [
    "AutocastInferer",
    "EnsembleInferer",
    "ForegroundInferer",
    "PlanesInferer",
    "SequenceInferer",
    "window_inferer",
]
