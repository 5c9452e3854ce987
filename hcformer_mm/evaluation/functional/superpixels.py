"""Scores of pixel clusterings against ground truth, as pure functions of label maps.

Definitions are those of Stutz, Hermans and Leibe, "Superpixels: An Evaluation of the
State-of-the-Art" (CVIU 2018, https://arxiv.org/abs/1612.01601), the paper's [51]. A clustering S
of N pixels has clusters S_j, the ground truth G has segments G_i.

Label maps are ``(H, W)`` arrays or tensors of integers, on any device; a cluster need not be
connected. Pixels of the ground truth that are void (``ignore``) do not exist to a score that reads
the ground truth: neither N nor the sizes of clusters count them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor

from .label_maps import Ignore, LabelMap, as_array, check_label_map, check_label_maps, numbered

UndersegmentationForm = Literal["neubert-protzel", "levin"]


@dataclass(frozen=True)
class Overlaps:
    """How many pixels each cluster shares with each segment: all that most scores need to know.

    The table is sparse: one entry for each of the P pairs that meet, ordered by cluster, then by
    segment. Clusters are numbered from 0 in the order of their labels, segments likewise.

    Attributes:
        clusters: ``(P,)``; number of the cluster of each pair.
        segments: ``(P,)``; number of its segment.
        pixels: ``(P,)``; how many pixels they share, at least 1.
        cluster_labels: ``(K,)``; label of each cluster.
        segment_labels: ``(G,)``; label of each segment in the ground truth.
    """

    clusters: NDArray[np.int64]
    segments: NDArray[np.int64]
    pixels: NDArray[np.int64]
    cluster_labels: NDArray[np.int64]
    segment_labels: NDArray[np.int64]

    @property
    def total(self) -> int:
        """N: number of pixels that are not void."""
        return int(self.pixels.sum())

    @property
    def cluster_sizes(self) -> NDArray[np.int64]:
        """``(K,)``; pixels of each cluster."""
        return _sums(self.clusters, self.pixels, len(self.cluster_labels))

    @property
    def segment_sizes(self) -> NDArray[np.int64]:
        """``(G,)``; pixels of each segment."""
        return _sums(self.segments, self.pixels, len(self.segment_labels))

    def majority(self) -> NDArray[np.int64]:
        """``(K,)``; the segment with most pixels of each cluster, of equals the smallest."""
        order = np.lexsort((self.segments, -self.pixels, self.clusters))
        _, first = np.unique(self.clusters[order], return_index=True)
        return self.segments[order][first]

    def undersegmentation_error(self, form: UndersegmentationForm = "neubert-protzel") -> float:
        """See :func:`undersegmentation_error`."""
        if form not in ("neubert-protzel", "levin"):
            raise ValueError(f"expected form 'neubert-protzel' or 'levin', got {form!r}")
        if not self.total:
            return float("nan")
        sizes = self.cluster_sizes[self.clusters]
        if form == "neubert-protzel":
            return float(np.minimum(self.pixels, sizes - self.pixels).sum() / self.total)
        covered = _sums(self.segments, sizes, len(self.segment_labels))
        return float(((covered - self.segment_sizes) / self.segment_sizes).mean())

    def achievable_segmentation_accuracy(self) -> float:
        """See :func:`achievable_segmentation_accuracy`."""
        if not self.total:
            return float("nan")
        largest = np.zeros(len(self.cluster_labels), np.int64)
        np.maximum.at(largest, self.clusters, self.pixels)
        return float(largest.sum() / self.total)


def overlaps(labels: LabelMap, ground_truth: LabelMap, *, ignore: Ignore = None) -> Overlaps:
    """Count the pixels that clusters and segments share.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        ground_truth: Segments, ``(H, W)`` integers.
        ignore: Void of the ground truth.

    Raises:
        ValueError: These are no label maps, or their sizes differ.
    """
    clustering, truth, valid = check_label_maps(labels, ground_truth, ignore)
    cluster_labels, cluster = numbered(clustering[valid])
    segment_labels, segment = numbered(truth[valid])
    pair, shared = _counts(cluster * max(len(segment_labels), 1) + segment)
    clusters, segments = np.divmod(pair, max(len(segment_labels), 1))
    return Overlaps(clusters, segments, shared, cluster_labels, segment_labels)


def undersegmentation_error(
    labels: LabelMap,
    ground_truth: LabelMap,
    *,
    form: UndersegmentationForm = "neubert-protzel",
    ignore: Ignore = None,
) -> float:
    r"""How far clusters leak over the borders of segments; 0 is best.

    Neubert and Protzel: ``1/N Σ_i Σ_{j: S_j∩G_i≠∅} min(|S_j∩G_i|, |S_j \ G_i|)``. A leak counts on
    both sides: an error of 2 % is one pixel of 100 in the wrong cluster, where that cluster belongs
    to one segment for the most part. At most 1.

    Levin: ``1/|G| Σ_i (Σ_{j: S_j∩G_i≠∅} |S_j| - |G_i|) / |G_i|``, in which a cluster that touches a
    segment by one pixel counts with its whole size, relative to the segment; it has no upper bound.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        ground_truth: Segments, ``(H, W)`` integers.
        form: Which of them.
        ignore: Void of the ground truth: its value, or a mask ``(H, W)``.

    Returns:
        The error; nan if everything is void.

    Raises:
        ValueError: These are no label maps, their sizes differ, or there is no such form.
    """
    return overlaps(labels, ground_truth, ignore=ignore).undersegmentation_error(form)


def undersegmentation_map(
    labels: LabelMap, ground_truth: LabelMap, *, ignore: Ignore = None
) -> NDArray[np.bool_]:
    """Where the error of Neubert and Protzel comes from.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        ground_truth: Segments, ``(H, W)`` integers.
        ignore: Void of the ground truth: its value, or a mask ``(H, W)``.

    Returns:
        ``(H, W)`` bool: the pixels whose segment has no more than half of their cluster. The error
        is their number over N, those counting twice whose cluster belongs to another segment by
        more than half.

    Raises:
        ValueError: These are no label maps, or their sizes differ.
    """
    clustering, truth, valid = check_label_maps(labels, ground_truth, ignore)
    _, cluster = numbered(clustering[valid])
    _, segment = numbered(truth[valid])
    # Every pixel looks up its pair, and its pair's share of the cluster.
    _, pair = numbered(cluster * (int(segment.max(initial=0)) + 1) + segment)
    share, size = np.bincount(pair)[pair], np.bincount(cluster)[cluster]
    counted = np.zeros(truth.shape, np.bool_)
    counted[valid] = 2 * share <= size
    return counted


def achievable_segmentation_accuracy(
    labels: LabelMap, ground_truth: LabelMap, *, ignore: Ignore = None
) -> float:
    """Part of the pixels that the best labeling of the clusters gets right; 1 is best.

    ``1/N Σ_j max_i |S_j∩G_i|``: each cluster gets the segment that it overlaps most. No other
    labeling of the clusters has more pixels right; 1 less this accuracy is the undersegmentation
    error of Van den Bergh.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        ground_truth: Segments, ``(H, W)`` integers.
        ignore: Void of the ground truth: its value, or a mask ``(H, W)``.

    Returns:
        The accuracy; nan if everything is void.

    Raises:
        ValueError: These are no label maps, or their sizes differ.
    """
    return overlaps(labels, ground_truth, ignore=ignore).achievable_segmentation_accuracy()


def majority_map(
    labels: LabelMap, ground_truth: LabelMap, *, ignore: Ignore = None, void: int = -1
) -> NDArray[np.int64]:
    """The labeling of the clusters that an oracle would choose: each gets its majority segment.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        ground_truth: Segments, ``(H, W)`` integers.
        ignore: Void of the ground truth: its value, or a mask ``(H, W)``.
        void: Value of the clusters that lie in void alone.

    Returns:
        ``(H, W)``: labels of the ground truth, in void pixels too, as a prediction has them there.

    Raises:
        ValueError: These are no label maps, or their sizes differ.
    """
    table = overlaps(labels, ground_truth, ignore=ignore)
    names, cluster = numbered(check_label_map(labels, "labels"))
    chosen = np.full(len(names), void, np.int64)
    chosen[np.searchsorted(names, table.cluster_labels)] = table.segment_labels[table.majority()]
    return chosen[cluster]


def boundary_recall(
    labels: LabelMap,
    ground_truth: LabelMap,
    *,
    tolerance: int | None = None,
    ignore: Ignore = None,
) -> float:
    """Part of the ground truth's boundary pixels that have one of a cluster nearby; 1 is best.

    A boundary pixel is one with another label above, below, left or right of it. Nearby is within
    the square of ``2 * tolerance + 1`` pixels around it. A border between a segment and void is no
    boundary: where the segment ends is unknown.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        ground_truth: Segments, ``(H, W)`` integers.
        tolerance: In pixels; by default :func:`boundary_tolerance`.
        ignore: Void of the ground truth: its value, or a mask ``(H, W)``.

    Returns:
        The recall; nan if the ground truth has no boundary.

    Raises:
        ValueError: These are no label maps, their sizes differ, or the tolerance is negative.
    """
    return boundary_scores(labels, ground_truth, tolerance=tolerance, ignore=ignore)[0]


def boundary_precision(
    labels: LabelMap,
    ground_truth: LabelMap,
    *,
    tolerance: int | None = None,
    ignore: Ignore = None,
) -> float:
    """Part of the clusters' boundary pixels that have one of the ground truth nearby; 1 is best.

    Those of :func:`boundary_recall`, the other way round. Boundary pixels with void nearby, or
    beside them, do not count: there may or may not be a boundary. More clusters have more
    boundaries, so this compares clusterings with equally many.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        ground_truth: Segments, ``(H, W)`` integers.
        tolerance: In pixels; by default :func:`boundary_tolerance`.
        ignore: Void of the ground truth: its value, or a mask ``(H, W)``.

    Returns:
        The precision; nan if the clusters have no boundary that counts.

    Raises:
        ValueError: These are no label maps, their sizes differ, or the tolerance is negative.
    """
    return boundary_scores(labels, ground_truth, tolerance=tolerance, ignore=ignore)[1]


def boundary_scores(
    labels: LabelMap,
    ground_truth: LabelMap,
    *,
    tolerance: int | None = None,
    ignore: Ignore = None,
) -> tuple[float, float]:
    """:func:`boundary_recall` and :func:`boundary_precision` at once."""
    clustering, truth, valid = check_label_maps(labels, ground_truth, ignore)
    if tolerance is None:
        tolerance = boundary_tolerance(*truth.shape)
    if tolerance < 0:
        raise ValueError(f"expected a tolerance of 0 pixels or more, got {tolerance}")
    found = boundaries(clustering)
    true = boundaries(truth, valid)
    counted = found
    if not valid.all():
        counted = found & ~_near(~valid, max(tolerance, 1))
    return (
        _fraction(true & _near(found, tolerance), true),
        _fraction(counted & _near(true, tolerance), counted),
    )


def boundary_tolerance(height: int, width: int) -> int:
    """0.0025 of the diagonal, in whole pixels: 1 for images of 321x481 pixels (Stutz et al.)."""
    return round(0.0025 * float(np.hypot(height, width)))


def boundaries(labels: LabelMap, valid: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Pixels ``(H, W)`` with another label above, below, left or right of them.

    Args:
        labels: ``(H, W)`` integers.
        valid: Pixels ``(H, W)`` that exist; by default all.
    """
    array = check_label_map(labels, "labels")
    found = np.zeros(array.shape, np.bool_)
    for above, below in _neighbors():
        border = array[above] != array[below]
        if valid is not None:
            border &= valid[above] & valid[below]
        found[above] |= border
        found[below] |= border
    return found


def compactness(labels: LabelMap) -> float:
    """How round clusters are; 1 is a circle, π/4 a square of pixels.

    ``1/N Σ_j |S_j| · 4π A(S_j) / P(S_j)²`` (Schick et al., ICPR 2012): the mean of isoperimetric
    quotients, weighted by size. The area A is the number of pixels, the perimeter P that of pixel
    sides to another cluster or to the outside of the image.

    Args:
        labels: Clusters, ``(H, W)`` integers.

    Returns:
        The compactness, in (0, π/4]: no shape of pixels has less perimeter than a square.

    Raises:
        ValueError: This is no label map.
    """
    names, cluster = numbered(check_label_map(labels, "labels"))
    # Four sides of each pixel, less the two that meet where neighbors are of one cluster.
    perimeter = 4 * np.bincount(cluster.ravel(), minlength=len(names))
    area = perimeter / 4
    for above, below in _neighbors():
        inside = cluster[above][cluster[above] == cluster[below]]
        perimeter -= 2 * np.bincount(inside, minlength=len(names))
    return float((area * (4 * np.pi * area / perimeter**2)).sum() / area.sum())


def explained_variation(labels: LabelMap, image: ArrayLike | Tensor) -> float:
    """Part of the image's variance that the mean colors of its clusters explain; 1 is best.

    ``Σ_j |S_j| ‖μ(S_j) - μ(I)‖² / Σ_n ‖I(x_n) - μ(I)‖²`` (Moore et al., CVPR 2008), which asks for
    no ground truth.

    Args:
        labels: Clusters, ``(H, W)`` integers.
        image: The image, ``(H, W)`` or ``(H, W, C)``.

    Returns:
        The part; nan for an image of one color.

    Raises:
        ValueError: This is no label map, or no image of its size.
    """
    names, cluster = numbered(check_label_map(labels, "labels"))
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
    """How many labels a map ``(H, W)`` has."""
    return len(numbered(check_label_map(labels, "labels"))[0])


def _counts(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values that occur, ordered, and how often each does."""
    names, numbers = numbered(values)
    return names, np.bincount(numbers, minlength=len(names)) if len(names) else names


def _sums(index: NDArray[np.int64], values: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Sums of integers by index. Exact: float64 holds integers up to 2^53."""
    return np.bincount(index, values, length).astype(np.int64)


def _neighbors() -> tuple[tuple[Any, Any], ...]:
    """Slices that lay each pixel beside the one below it, and beside the one right of it."""
    return (np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])


def _near(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Pixels with one of the mask in the square of ``2 * distance + 1`` around them."""
    return ndimage.maximum_filter(mask, 2 * distance + 1, mode="constant", cval=False)


def _fraction(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else float("nan")
