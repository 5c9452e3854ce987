"""Partitions of an image and their scores.

A partition is a label map: the cells of the finest map, the clusters of a level, or superpixels.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import slic
from tabulate import tabulate

from ..ops.clusters import cells_under
from ..structures.arrays import Labels, RGBImage
from ..structures.image_clusters import ImageClusters
from .error_attribution import GROUND_TRUTH, PREDICTION
from .functional import superpixels
from .measures import ImageGroundTruth


def cell_map(clusters: ImageClusters) -> NDArray[np.int64]:
    """Cells of the finest map at the image's size, ``(H, W)``, numbered row by row."""
    columns = clusters.assignments[0].shape[-1]
    rows, cols = (
        cells_under(pixels, size, clusters.stride).numpy()
        for pixels, size in zip(clusters.image_size, clusters.input_size, strict=True)
    )
    return rows[:, None] * columns + cols


def score_partition(
    labels: Labels, truth: ImageGroundTruth, image: RGBImage, *, tolerance: int | None = None
) -> dict[str, float]:
    """Compute all superpixel scores of one image, in percent except for the number of clusters.

    Args:
        labels: Partition, ``(H, W)``.
        truth: Ground truth of the same size.
        image: The image, ``(H, W, 3)``.
        tolerance: Tolerance of boundaries in pixels; by default 0.0025 of the diagonal.

    Returns:
        Scores by name; nan where the image does not define a score.

    Raises:
        ValueError: The sizes differ, or the tolerance is negative.
    """
    table = superpixels.overlaps(labels, truth.segments, ignore=truth.void)
    recall, precision = superpixels.boundary_scores(
        labels, truth.segments, tolerance=tolerance, ignore=truth.void
    )
    fractions = dict(
        UE=table.undersegmentation_error(),
        UE_Levin=table.undersegmentation_error("levin"),
        ASA=table.achievable_segmentation_accuracy(),
        boundary_recall=recall,
        boundary_precision=precision,
        compactness=superpixels.compactness(labels),
        explained_variation=superpixels.explained_variation(labels, image),
    )
    return {
        "clusters": float(superpixels.number_of_clusters(labels)),
        **{name: 100 * value for name, value in fractions.items()},
    }


def score_table(metrics: Mapping[str, float]) -> str:
    """Format results named ``<partition>/<score>``: a row per partition, a column per score.

    The ground truth is the first row and the prediction the last, as in the order of the stages.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        partition, *path, score = name.split("/")
        if not path:
            rows.setdefault(partition, {})[score] = value
    columns = dict.fromkeys(score for values in rows.values() for score in values)
    place = {GROUND_TRUTH: -1, PREDICTION: 1}
    return tabulate(
        [
            [name.replace("slic", "SLIC").replace("_", " "), *map(rows[name].get, columns)]
            for name in sorted(rows, key=lambda name: place.get(name, 0))
        ],
        # Long names take two lines.
        headers=["", *(name.replace("_", "\n") if len(name) > 8 else name for name in columns)],
        floatfmt=".1f",
    )


def slic_superpixels(image: RGBImage, number: int) -> NDArray[np.int64]:
    """Superpixels of SLIC (Achanta et al., TPAMI 2012), by scikit-image with its defaults.

    SLIC seeds a grid and merges small parts, so it rarely returns exactly the requested number. Up
    to four requests are tried, and the result closest to ``number`` is kept.

    Args:
        image: The image, ``(H, W, 3)``, RGB.
        number: Desired number of superpixels.

    Returns:
        Int64 labels ``(H, W)``, counted from 0.
    """
    tries: list[tuple[int, NDArray[np.int64]]] = []
    request = number
    while len(tries) < 4:
        labels = slic(image, n_segments=request, start_label=0)
        found = superpixels.number_of_clusters(labels)
        tries.append((abs(found - number), labels))
        if found == number:
            break
        request = max(1, round(request * number / found))
    return min(tries, key=lambda tried: tried[0])[1]
