"""Heatmaps to look at: figures, and a widget to review them in a notebook."""

from ssmctb_monai.visualize.candidates import Candidate, find_candidates
from ssmctb_monai.visualize.figures import plot_case, plot_montage, plot_roc_pr
from ssmctb_monai.visualize.heatmap import Heatmap, load_heatmap
from ssmctb_monai.visualize.notebook import compare, review, view_3d
from ssmctb_monai.visualize.results import find_maps
from ssmctb_monai.visualize.verdicts import Verdict, VerdictFile

__all__ = [
    "Candidate",
    "Heatmap",
    "Verdict",
    "VerdictFile",
    "compare",
    "find_candidates",
    "find_maps",
    "load_heatmap",
    "plot_case",
    "plot_montage",
    "plot_roc_pr",
    "review",
    "view_3d",
]
