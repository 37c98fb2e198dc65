"""Metrics of anomaly detection."""

from ssmctb_monai.metrics.anomaly_metric import AnomalyMetric
from ssmctb_monai.metrics.boxes import BoxFindings, box_criterion
from ssmctb_monai.metrics.definitions import METRICS, MetricDefinition
from ssmctb_monai.metrics.evaluation import AnomalyEvaluation, Estimate
from ssmctb_monai.metrics.folds import ResampledMetrics, difference_over_folds, mean_over_folds
from ssmctb_monai.metrics.ranking import auroc, average_precision
from ssmctb_monai.metrics.settings import EvaluationSettings
from ssmctb_monai.metrics.threshold import LabelFreeThreshold, load_thresholds, save_thresholds
from ssmctb_monai.metrics.view import View

__all__ = [
    "METRICS",
    "AnomalyEvaluation",
    "AnomalyMetric",
    "BoxFindings",
    "Estimate",
    "EvaluationSettings",
    "LabelFreeThreshold",
    "MetricDefinition",
    "ResampledMetrics",
    "View",
    "auroc",
    "average_precision",
    "box_criterion",
    "difference_over_folds",
    "load_thresholds",
    "mean_over_folds",
    "save_thresholds",
]
