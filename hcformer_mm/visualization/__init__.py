"""Pictures of what a model sees: clusters of every level, predictions, ground truth."""

from .drawing import (
    Classes,
    Panel,
    Panoptic,
    cluster_sheet,
    draw_boundaries,
    draw_panoptic,
    mean_colors,
    random_colors,
    resize_labels,
    sheet,
)

__all__ = [
    "Classes",
    "Panel",
    "Panoptic",
    "cluster_sheet",
    "draw_boundaries",
    "draw_panoptic",
    "mean_colors",
    "random_colors",
    "resize_labels",
    "sheet",
]
