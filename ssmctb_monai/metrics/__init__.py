"""Figures of anomaly detection."""

from ssmctb_monai.metrics.anomaly_metric import AnomalyMetric
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation, Estimate
from ssmctb_monai.metrics.figures import FIGURES, Figure
from ssmctb_monai.metrics.folds import ResampledFigures, difference_over_folds, mean_over_folds
from ssmctb_monai.metrics.ranking import auroc, average_precision
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.threshold import LabelFreeThreshold, load_thresholds, save_thresholds, thresholds_file
from ssmctb_monai.metrics.view import View

__all__ = [
    "FIGURES",
    "AnomalyEvaluation",
    "AnomalyMetric",
    "Estimate",
    "EvaluationSettings",
    "Figure",
    "LabelFreeThreshold",
    "ResampledFigures",
    "View",
    "auroc",
    "average_precision",
    "difference_over_folds",
    "load_thresholds",
    "mean_over_folds",
    "save_thresholds",
    "thresholds_file",
]
