"""Data that modules exchange: clustered features, clusters of an image, panoptic segments."""

from .clustered_features import ClusteredFeatures
from .data_samples import SCORE_THR, predicted_segments, true_segments
from .image_clusters import ImageClusters
from .panoptic import Classes, Panoptic

__all__ = [
    "SCORE_THR",
    "Classes",
    "ClusteredFeatures",
    "ImageClusters",
    "Panoptic",
    "predicted_segments",
    "true_segments",
]
