"""Anomaly detection networks."""

from ssmctb_monai.networks.nets.ascent_autoencoder import AscentAutoencoder
from ssmctb_monai.networks.nets.cutpaste_classifier import CutPasteClassifier
from ssmctb_monai.networks.nets.detector import Detector
from ssmctb_monai.networks.nets.draem import DRAEM
from ssmctb_monai.networks.nets.encoder_decoder import EncoderDecoder
from ssmctb_monai.networks.nets.future_predictor import FuturePredictor
from ssmctb_monai.networks.nets.masked_autoencoder import MaskedAutoencoder
from ssmctb_monai.networks.nets.memory_autoencoder import MemoryAutoencoder
from ssmctb_monai.networks.nets.reconstruction import Reconstruction
from ssmctb_monai.networks.nets.reconstruction_detector import ReconstructionDetector
from ssmctb_monai.networks.nets.ssm import SSM
from ssmctb_monai.networks.nets.ssmtl import SSMTL
from ssmctb_monai.networks.nets.state import STATE

__all__ = [
    "DRAEM",
    "SSM",
    "SSMTL",
    "STATE",
    "AscentAutoencoder",
    "CutPasteClassifier",
    "Detector",
    "EncoderDecoder",
    "FuturePredictor",
    "MaskedAutoencoder",
    "MemoryAutoencoder",
    "Reconstruction",
    "ReconstructionDetector",
]
