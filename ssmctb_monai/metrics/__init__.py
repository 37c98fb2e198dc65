"""Figures of anomaly detection."""

from ssmctb_monai.metrics.anomaly_metric import AnomalyMetric
from ssmctb_monai.metrics.case_statistics import CaseStatistics
from ssmctb_monai.metrics.ranking import auroc, average_precision

__all__ = ["AnomalyMetric", "CaseStatistics", "auroc", "average_precision"]
