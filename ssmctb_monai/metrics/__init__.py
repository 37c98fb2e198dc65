"""Figures of anomaly detection."""

from ssmctb_monai.metrics.anomaly_metric import AnomalyMetric
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation, Estimate
from ssmctb_monai.metrics.figures import FIGURES, Figure
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
    "View",
    "auroc",
    "average_precision",
    "load_thresholds",
    "save_thresholds",
    "thresholds_file",
]
