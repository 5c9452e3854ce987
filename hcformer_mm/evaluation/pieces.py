"""The pieces that an image is cut into, and all scores of them."""

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import slic

from ..ops.clusters import cells_under
from ..structures.image_clusters import ImageClusters
from . import functional
from .measures import ImageGroundTruth


def cell_map(clusters: ImageClusters) -> NDArray[np.int64]:
    """Cells of the finest map at the image's size, ``(H, W)``, numbered row by row."""
    columns = clusters.assignments[0].shape[-1]
    rows, cols = (
        cells_under(pixels, size, clusters.stride, torch.device("cpu")).numpy()
        for pixels, size in zip(clusters.image_size, clusters.input_size, strict=True)
    )
    return rows[:, None] * columns + cols


def score_clusters(
    labels: NDArray[np.int64],
    truth: ImageGroundTruth,
    image: NDArray[np.uint8],
    *,
    tolerance: int | None = None,
) -> dict[str, float]:
    """All scores of a clustering of one image, those in percent that are parts of something.

    Args:
        labels: Clusters, ``(H, W)``.
        truth: Ground truth of the same size.
        image: The image, ``(H, W, 3)``.
        tolerance: Of boundaries, in pixels.
    """
    table = functional.overlaps(labels, truth.segments, ignore=truth.void)
    recall, precision = functional.boundary_scores(
        labels, truth.segments, tolerance=tolerance, ignore=truth.void
    )
    parts = dict(
        UE=table.undersegmentation_error(),
        UE_Levin=table.undersegmentation_error("levin"),
        ASA=table.achievable_segmentation_accuracy(),
        boundary_recall=recall,
        boundary_precision=precision,
        compactness=functional.compactness(labels),
        explained_variation=functional.explained_variation(labels, image),
    )
    return {
        "clusters": float(functional.number_of_clusters(labels)),
        **{name: 100 * value for name, value in parts.items()},
    }


def slic_superpixels(image: NDArray[np.uint8], number: int) -> NDArray[np.int64]:
    """Superpixels of SLIC (Achanta et al., TPAMI 2012), by scikit-image with its defaults.

    It places its seeds on a grid and then merges small parts, so that it returns other numbers than
    it is asked for. It is asked up to four times, and what comes closest is kept.

    Args:
        image: The image, ``(H, W, 3)``, RGB.
        number: How many superpixels are wanted.

    Returns:
        Their labels ``(H, W)``, from 0.
    """
    tries: list[tuple[int, NDArray[np.int64]]] = []
    request = number
    while len(tries) < 4:
        labels = slic(image, n_segments=request, start_label=0)
        found = functional.number_of_clusters(labels)
        tries.append((abs(found - number), labels))
        if found == number:
            break
        request = max(1, round(request * number / found))
    return min(tries, key=lambda tried: tried[0])[1]
