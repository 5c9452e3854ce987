"""Images of what a model sees: clusters of every level, predictions, ground truth."""

from .clusters import draw_boundaries, draw_errors, draw_hierarchy, mean_colors, random_colors
from .layouts import LAYOUTS, Layout, cluster_sheet
from .panels import Panel, sheet
from .panoptic import draw_panoptic

__all__ = [
    "LAYOUTS",
    "Layout",
    "Panel",
    "cluster_sheet",
    "draw_boundaries",
    "draw_errors",
    "draw_hierarchy",
    "draw_panoptic",
    "mean_colors",
    "random_colors",
    "sheet",
]
