"""Images of clusters, predictions and ground truth: arrays in, images out."""

from .clusters import draw_boundaries, draw_errors, draw_hierarchy, mean_colors, random_colors
from .faults import fault_sheet
from .figures import PLAIN, FigureStyle, draw_figure
from .layouts import LAYOUTS, SheetLayout, cluster_sheet
from .panels import Panel, sheet
from .panoptic import draw_panoptic

__all__ = [
    "LAYOUTS",
    "PLAIN",
    "FigureStyle",
    "Panel",
    "SheetLayout",
    "cluster_sheet",
    "draw_boundaries",
    "draw_errors",
    "draw_figure",
    "draw_hierarchy",
    "draw_panoptic",
    "fault_sheet",
    "mean_colors",
    "random_colors",
    "sheet",
]
