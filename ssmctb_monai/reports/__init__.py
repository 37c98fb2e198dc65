"""Reports of evaluations, and the results of inference."""

from ssmctb_monai.reports.folders import evaluate_folders
from ssmctb_monai.reports.report import build_report, format_report, write_report
from ssmctb_monai.reports.scan_results import ScanResults

__all__ = ["ScanResults", "build_report", "evaluate_folders", "format_report", "write_report"]
