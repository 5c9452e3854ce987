"""Pictures of what a model sees: clusters of every level, predictions, ground truth."""

from .clusters import draw_boundaries, draw_errors, draw_hierarchy, mean_colors, random_colors
from .data_samples import SCORE_THR, predicted_segments, true_segments
from .layouts import LAYOUTS, Layout, cluster_sheet
from .panels import Panel, sheet
from .segments import Classes, Panoptic, draw_panoptic

__all__ = [
    "LAYOUTS",
    "SCORE_THR",
    "Classes",
    "Layout",
    "Panel",
    "Panoptic",
    "cluster_sheet",
    "draw_boundaries",
    "draw_errors",
    "draw_hierarchy",
    "draw_panoptic",
    "mean_colors",
    "predicted_segments",
    "random_colors",
    "sheet",
    "true_segments",
]
