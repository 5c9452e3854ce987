"""Superpixel scores: how well a clustering of an image fits its ground truth.

Definitions follow Stutz, Hermans and Leibe, "Superpixels: An Evaluation of the State-of-the-Art"
(CVIU 2018, https://arxiv.org/abs/1612.01601), the paper's [51]. A clustering S of N pixels has
clusters S_j, the ground truth G has segments G_i.

The functions share their arguments. ``labels`` are the clusters and ``ground_truth`` the segments:
integers ``(H, W)`` of one size, as arrays, tensors on any device or lists. A cluster need not be
connected. ``ignore`` marks the void pixels of the ground truth, by value or by an ``(H, W)`` bool
mask; scores against ground truth exclude them from N and from every size. Label maps that are
empty, not of integers or of different sizes raise a ValueError.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from torch import Tensor

from .label_maps import (
    Ignore,
    LabelMap,
    as_array,
    check_label_map,
    check_map_pair,
    unique_inverse,
)

UndersegmentationForm = Literal["neubert-protzel", "levin"]


@dataclass(frozen=True)
class Overlaps:
    """Contingency table of K clusters and G segments, from which several scores follow.

    Attributes:
        pixels: Sparse ``(K, G)``; number of pixels that a cluster and a segment share.
        cluster_labels: ``(K,)``; label of each row, ascending.
        segment_labels: ``(G,)``; label of each column, ascending.
    """

    pixels: csr_array
    cluster_labels: NDArray[np.int64]
    segment_labels: NDArray[np.int64]

    @property
    def total(self) -> int:
        """N: number of pixels that are not void."""
        return int(self.pixels.sum())

    @property
    def cluster_sizes(self) -> NDArray[np.int64]:
        """``(K,)``; pixels of each cluster."""
        return np.asarray(self.pixels.sum(axis=1))

    @property
    def segment_sizes(self) -> NDArray[np.int64]:
        """``(G,)``; pixels of each segment."""
        return np.asarray(self.pixels.sum(axis=0))

    @property
    def largest(self) -> NDArray[np.int64]:
        """``(K,)``; largest number of pixels that each cluster shares with one segment."""
        return np.maximum.reduceat(self.pixels.data, self.pixels.indptr[:-1])

    def majority(self) -> NDArray[np.int64]:
        """``(K,)``; column of the segment that each cluster overlaps most, the first if tied."""
        starts, lengths = self.pixels.indptr[:-1], np.diff(self.pixels.indptr)
        best = np.flatnonzero(self.pixels.data == np.repeat(self.largest, lengths))
        return self.pixels.indices[best[np.searchsorted(best, starts)]].astype(np.int64)

    def undersegmentation_error(self, form: UndersegmentationForm = "neubert-protzel") -> float:
        """See :func:`undersegmentation_error`."""
        if form not in ("neubert-protzel", "levin"):
            raise ValueError(f"expected form 'neubert-protzel' or 'levin', got {form!r}")
        if not self.total:
            return float("nan")
        if form == "neubert-protzel":
            shared = self.pixels.data
            sizes = np.repeat(self.cluster_sizes, np.diff(self.pixels.indptr))
            return float(np.minimum(shared, sizes - shared).sum() / self.total)
        covered = (self.pixels > 0).T @ self.cluster_sizes
        return float(((covered - self.segment_sizes) / self.segment_sizes).mean())

    def achievable_segmentation_accuracy(self) -> float:
        """See :func:`achievable_segmentation_accuracy`."""
        return float(self.largest.sum() / self.total) if self.total else float("nan")


def overlaps(labels: LabelMap, ground_truth: LabelMap, *, ignore: Ignore = None) -> Overlaps:
    """Count the pixels that each cluster shares with each segment, void excluded."""
    clusters, segments, valid = check_map_pair(labels, ground_truth, ignore)
    cluster_labels, rows = unique_inverse(clusters[valid])
    segment_labels, columns = unique_inverse(segments[valid])
    shape = (len(cluster_labels), len(segment_labels))
    pixels = csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=shape)
    return Overlaps(pixels, cluster_labels, segment_labels)


def undersegmentation_error(
    labels: LabelMap,
    ground_truth: LabelMap,
    *,
    form: UndersegmentationForm = "neubert-protzel",
    ignore: Ignore = None,
) -> float:
    r"""Undersegmentation error (UE): how far clusters leak over the borders of segments.

    Neubert and Protzel: ``1/N Σ_i Σ_{j: S_j∩G_i≠∅} min(|S_j∩G_i|, |S_j \ G_i|)``, in [0, 1]. A leak
    counts on both sides: in a cluster that lies mostly in one segment, one wrong pixel of 100 is an
    error of 2 %.

    Levin: ``1/|G| Σ_i (Σ_{j: S_j∩G_i≠∅} |S_j| - |G_i|) / |G_i|``, without upper bound: a cluster
    that touches a segment by one pixel counts with its whole size, relative to the segment.

    Returns:
        The error, 0 at best; nan if all pixels are void.

    Raises:
        ValueError: ``form`` or the label maps are invalid.
    """
    return overlaps(labels, ground_truth, ignore=ignore).undersegmentation_error(form)


def undersegmentation_map(
    labels: LabelMap, ground_truth: LabelMap, *, ignore: Ignore = None
) -> NDArray[np.bool_]:
    """Pixels that make up the error of Neubert and Protzel.

    Returns:
        ``(H, W)`` bool, the pixels whose segment covers at most half of their cluster. The error is
        the number of these pixels over N, where a pixel counts twice if another segment covers more
        than half of its cluster.
    """
    clusters, segments, valid = check_map_pair(labels, ground_truth, ignore)
    _, cluster = unique_inverse(clusters[valid])
    _, segment = unique_inverse(segments[valid])
    _, pair = unique_inverse(cluster * (int(segment.max(initial=0)) + 1) + segment)
    errors = np.zeros(segments.shape, np.bool_)
    errors[valid] = 2 * np.bincount(pair)[pair] <= np.bincount(cluster)[cluster]
    return errors


def achievable_segmentation_accuracy(
    labels: LabelMap, ground_truth: LabelMap, *, ignore: Ignore = None
) -> float:
    """Achievable segmentation accuracy (ASA): pixel accuracy of the best labeling of the clusters.

    ``1/N Σ_j max_i |S_j∩G_i|``: each cluster takes the segment that it overlaps most, and no other
    labeling gets more pixels right. 1 - ASA is the undersegmentation error of Van den Bergh.

    Returns:
        The accuracy in [0, 1]; nan if all pixels are void.
    """
    return overlaps(labels, ground_truth, ignore=ignore).achievable_segmentation_accuracy()


def majority_map(
    labels: LabelMap, ground_truth: LabelMap, *, ignore: Ignore = None, void: int = -1
) -> NDArray[np.int64]:
    """Give each cluster the segment that it overlaps most, the smallest label if tied.

    Returns:
        Labels of the ground truth, int64 ``(H, W)``. Void pixels get labels too, since
        predictions have them; ``void`` fills clusters that lie entirely in void.
    """
    table = overlaps(labels, ground_truth, ignore=ignore)
    names, cluster = unique_inverse(check_label_map(labels, "labels"))
    chosen = np.full(len(names), void, np.int64)
    chosen[np.searchsorted(names, table.cluster_labels)] = table.segment_labels[table.majority()]
    return chosen[cluster]


def boundary_scores(
    labels: LabelMap,
    ground_truth: LabelMap,
    *,
    tolerance: int | None = None,
    ignore: Ignore = None,
) -> tuple[float, float]:
    """Boundary recall and boundary precision.

    Recall is the fraction of the ground truth's boundary pixels with a cluster's boundary pixel
    nearby, precision the reverse. Nearby means within the square of ``2 * tolerance + 1`` pixels. A
    border between a segment and void is no boundary, since the segment may continue in void.
    Boundary pixels of clusters that touch void, or have void nearby, do not count, since the true
    boundary is unknown there. Precision grows as clusters grow fewer, so compare it only between
    clusterings with equally many clusters.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        ground_truth: Segments, ``(H, W)`` integers.
        tolerance: In pixels; by default :func:`boundary_tolerance`.
        ignore: Void of the ground truth: its value, or an ``(H, W)`` bool mask.

    Returns:
        Both in [0, 1]; nan where there is no boundary pixel to count.

    Raises:
        ValueError: The tolerance is negative, or the label maps are invalid.
    """
    clusters, segments, valid = check_map_pair(labels, ground_truth, ignore)
    if tolerance is None:
        tolerance = boundary_tolerance(*segments.shape)
    if tolerance < 0:
        raise ValueError(f"expected a tolerance of 0 pixels or more, got {tolerance}")
    found, true = boundaries(clusters), boundaries(segments, valid)
    counted = found if valid.all() else found & ~_near(~valid, max(tolerance, 1))
    recall = _fraction(true & _near(found, tolerance), true)
    return recall, _fraction(counted & _near(true, tolerance), counted)


def boundary_tolerance(height: int, width: int) -> int:
    """0.0025 of the diagonal, in whole pixels: 1 for images of 321x481 pixels (Stutz et al.)."""
    return round(0.0025 * float(np.hypot(height, width)))


def boundaries(labels: LabelMap, valid: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Pixels with another label above, below, left or right of them, ``(H, W)`` bool.

    Equals ``skimage.segmentation.find_boundaries(labels, connectivity=1)``, except that a border
    with a void pixel, outside the ``(H, W)`` mask ``valid``, is no boundary on either side.
    """
    array = check_label_map(labels, "labels")
    found = np.zeros(array.shape, np.bool_)
    for first, second in _adjacent():
        border = array[first] != array[second]
        if valid is not None:
            border &= valid[first] & valid[second]
        found[first] |= border
        found[second] |= border
    return found


def compactness(labels: LabelMap) -> float:
    """Compactness (CO): how round clusters are.

    ``1/N Σ_j |S_j| · 4π A(S_j) / P(S_j)²`` (Schick et al., ICPR 2012): the isoperimetric quotients,
    weighted by size. The area A is the number of pixels, the perimeter P the number of pixel sides
    that face another cluster or the outside of the image.

    Returns:
        The compactness in (0, π/4]; a square cluster has π/4.
    """
    names, cluster = unique_inverse(check_label_map(labels, "labels"))
    area = np.bincount(cluster.ravel(), minlength=len(names))
    perimeter = 4 * area  # minus both sides that meet where adjacent pixels share a cluster
    for first, second in _adjacent():
        inside = cluster[first][cluster[first] == cluster[second]]
        perimeter -= 2 * np.bincount(inside, minlength=len(names))
    return float((area * (4 * np.pi * area / perimeter**2)).sum() / area.sum())


def explained_variation(labels: LabelMap, image: ArrayLike | Tensor) -> float:
    """Explained variation (EV): fraction of the image's variance between its clusters' means.

    ``Σ_j |S_j| ‖μ(S_j) - μ(I)‖² / Σ_n ‖I(x_n) - μ(I)‖²`` (Moore et al., CVPR 2008). It needs no
    ground truth.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        image: The image, ``(H, W)`` or ``(H, W, C)``.

    Returns:
        The fraction in [0, 1]; nan for an image of one color.

    Raises:
        ValueError: The label map is invalid, or its size differs from the image's.
    """
    names, cluster = unique_inverse(check_label_map(labels, "labels"))
    pixels = as_array(image).astype(np.float64)
    if pixels.ndim not in (2, 3) or pixels.shape[:2] != cluster.shape:
        raise ValueError(
            f"expected an image (H, W) or (H, W, C) of the size {cluster.shape} of its label map, "
            f"got {pixels.shape}"
        )
    pixels = pixels.reshape(cluster.size, -1)  # (N, C)
    pixels = pixels - pixels.mean(axis=0)
    total = float((pixels**2).sum())
    if total == 0:
        return float("nan")
    flat = cluster.ravel()
    sums = np.stack([np.bincount(flat, channel, len(names)) for channel in pixels.T])  # (C, K)
    return float((sums**2 / np.bincount(flat)).sum() / total)


def number_of_clusters(labels: LabelMap) -> int:
    """Number of different labels in a label map."""
    return len(unique_inverse(check_label_map(labels, "labels"))[0])


def _adjacent() -> tuple[tuple[Any, Any], ...]:
    """Slices that pair each pixel with the one below it, and with the one to its right."""
    return (np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])


def _near(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Pixels with a pixel of the mask in the square of ``2 * distance + 1`` around them."""
    return ndimage.maximum_filter(mask, 2 * distance + 1, mode="constant", cval=False)


def _fraction(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else float("nan")
