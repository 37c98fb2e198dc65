"""Reports of evaluations."""

from ssmctb_monai.reports.folders import evaluate_folders
from ssmctb_monai.reports.report import build_report, format_report, write_report

__all__ = ["build_report", "evaluate_folders", "format_report", "write_report"]
