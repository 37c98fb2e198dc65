"""Handlers for MONAI's engines."""

from ssmctb_monai.handlers.checkpoint import TrainingCheckpoint
from ssmctb_monai.handlers.epoch_seed import EpochSeed
from ssmctb_monai.handlers.evaluation_report import EvaluationReport
from ssmctb_monai.handlers.progress import TrainingProgress
from ssmctb_monai.handlers.save_results import SaveResults
from ssmctb_monai.handlers.weight_average import WeightAverage

__all__ = ["EpochSeed", "EvaluationReport", "SaveResults", "TrainingCheckpoint", "TrainingProgress", "WeightAverage"]
