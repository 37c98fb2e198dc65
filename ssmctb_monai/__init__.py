"""Unsupervised anomaly detection in 3D brain MRI with masked convolutional transformer blocks, on MONAI."""

from ssmctb_monai.losses import DRAEMLoss, SelfSupervisedLoss
from ssmctb_monai.networks.blocks import SSMCTB, SSPCAB, MaskedConvolution, from_released
from ssmctb_monai.networks.nets import DRAEM

__version__ = "0.1.0"

__all__ = [
    "DRAEM",
    "SSMCTB",
    "SSPCAB",
    "DRAEMLoss",
    "MaskedConvolution",
    "SelfSupervisedLoss",
    "__version__",
    "from_released",
]
