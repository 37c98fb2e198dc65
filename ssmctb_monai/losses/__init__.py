"""Losses of the blocks and of the systems that contain them."""

from ssmctb_monai.losses.ascent import AscentLoss
from ssmctb_monai.losses.draem import DRAEMLoss
from ssmctb_monai.losses.masked_reconstruction import MaskedReconstructionLoss
from ssmctb_monai.losses.memory import MemoryLoss
from ssmctb_monai.losses.prediction import PredictionLoss
from ssmctb_monai.losses.self_supervised import SelfSupervisedLoss, block_reconstruction_loss
from ssmctb_monai.losses.ssm import MSGMSLoss, SSMLoss
from ssmctb_monai.losses.ssmtl import SSMTLLoss

__all__ = [
    "AscentLoss",
    "DRAEMLoss",
    "MSGMSLoss",
    "MaskedReconstructionLoss",
    "MemoryLoss",
    "PredictionLoss",
    "SSMLoss",
    "SSMTLLoss",
    "SelfSupervisedLoss",
    "block_reconstruction_loss",
]
