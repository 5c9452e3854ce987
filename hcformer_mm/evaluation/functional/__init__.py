"""Pure functions of label maps."""

from .superpixels import (
    Overlaps,
    achievable_segmentation_accuracy,
    boundaries,
    boundary_scores,
    boundary_tolerance,
    compactness,
    explained_variation,
    majority_map,
    number_of_clusters,
    overlaps,
    undersegmentation_error,
    undersegmentation_map,
)

__all__ = [
    "Overlaps",
    "achievable_segmentation_accuracy",
    "boundaries",
    "boundary_scores",
    "boundary_tolerance",
    "compactness",
    "explained_variation",
    "majority_map",
    "number_of_clusters",
    "overlaps",
    "undersegmentation_error",
    "undersegmentation_map",
]
