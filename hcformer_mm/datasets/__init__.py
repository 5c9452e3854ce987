"""Datasets, ground truth, checks of annotations and steps of pipelines; registers them."""

from .shapes import ShapesInstanceDataset, ShapesPanopticDataset, ShapesSemanticDataset
from .transforms import (
    LoadImageFromFile,
    LoadInstanceAnnotations,
    LoadPanopticAnnotations,
    LoadSemanticAnnotations,
    Resize,
    ResizeShortestEdge,
)

__all__ = [
    "LoadImageFromFile",
    "LoadInstanceAnnotations",
    "LoadPanopticAnnotations",
    "LoadSemanticAnnotations",
    "Resize",
    "ResizeShortestEdge",
    "ShapesInstanceDataset",
    "ShapesPanopticDataset",
    "ShapesSemanticDataset",
]
