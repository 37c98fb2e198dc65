"""Handlers for MONAI's engines."""

from ssmctb_monai.handlers.checkpoint import TrainingCheckpoint
from ssmctb_monai.handlers.epoch_seed import EpochSeed
from ssmctb_monai.handlers.evaluation_report import EvaluationReport
from ssmctb_monai.handlers.fit_detector import FitDetector
from ssmctb_monai.handlers.free_cores import FreeCores
from ssmctb_monai.handlers.interval_validation import IntervalValidation
from ssmctb_monai.handlers.progress import TrainingProgress, ValidationProgress
from ssmctb_monai.handlers.save_results import SaveResults
from ssmctb_monai.handlers.training_record import TrainingRecord
from ssmctb_monai.handlers.weight_average import WeightAverage

__all__ = [
    "EpochSeed",
    "EvaluationReport",
    "FitDetector",
    "FreeCores",
    "IntervalValidation",
    "SaveResults",
    "TrainingCheckpoint",
    "TrainingProgress",
    "TrainingRecord",
    "ValidationProgress",
    "WeightAverage",
]
