"""Superpixel scores: a hand-drawn example, slow oracles, and properties of any image.

The example has 4 x 6 pixels, four clusters of 2 x 3 and three segments of 8, 12 and 4 pixels:

    clusters         segments
    0 0 0 1 1 1      1 1 2 2 2 2
    0 0 0 1 1 1      1 1 2 2 2 2
    2 2 2 3 3 3      1 1 2 2 3 3
    2 2 2 3 3 3      1 1 2 2 3 3

Cluster 0 shares 4 pixels with segment 1 and 2 with segment 2; cluster 1 shares 6 with segment 2;
cluster 2 is like cluster 0; cluster 3 shares 2 with segment 2 and 4 with segment 3.
"""

from itertools import pairwise
from math import isnan, nan, pi

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import contingency_table
from skimage.segmentation import find_boundaries

from hcformer_mm.evaluation.functional.superpixels import (
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
from hcformer_mm.ops import hierarchical_clusters
from tests.helpers import reference

CLUSTERS = np.array([[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2)
SEGMENTS = np.array([[1, 1, 2, 2, 2, 2]] * 2 + [[1, 1, 2, 2, 3, 3]] * 2)
SIZES = [(1, 1), (1, 9), (9, 1), (5, 8), (13, 7)]
FORMS = ("neubert-protzel", "levin")


def random_maps(size, clusters=5, segments=4, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(clusters, size=size), random.integers(segments, size=size)


def test_undersegmentation_error():
    """Leaks: min(4, 2) + min(2, 4) of cluster 0, as many of clusters 2 and 3, of 24 pixels.

    Levin: segment 1 is covered by 12 pixels, segment 2 by all 24, segment 3 by 6:
    ((12 - 8) / 8 + (24 - 12) / 12 + (6 - 4) / 4) / 3 = (1/2 + 1 + 1/2) / 3.
    """
    assert undersegmentation_error(CLUSTERS, SEGMENTS) == 12 / 24
    assert undersegmentation_error(CLUSTERS, SEGMENTS, form="levin") == pytest.approx(2 / 3)


def test_undersegmentation_map():
    """The pixels of segment 2 in clusters 0, 2 and 3.

    In a cluster of two halves, each leaks into the other: all pixels count, once each.
    """
    expected = np.array([[0, 0, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 0, 0]] * 2, dtype=bool)
    assert np.array_equal(undersegmentation_map(CLUSTERS, SEGMENTS), expected)
    labels, halves = np.zeros((2, 4), int), np.array([[0, 0, 1, 1]] * 2)
    assert undersegmentation_map(labels, halves).all()
    assert undersegmentation_error(labels, halves) == 1.0


def test_majority():
    """The largest shares are 4 + 6 + 4 + 4 of 24 pixels."""
    assert achievable_segmentation_accuracy(CLUSTERS, SEGMENTS) == 18 / 24
    expected = np.array([[1, 1, 1, 2, 2, 2]] * 2 + [[1, 1, 1, 3, 3, 3]] * 2)
    assert np.array_equal(majority_map(CLUSTERS, SEGMENTS), expected)
    tied = majority_map(torch.tensor([[0, 0]]), torch.tensor([[5, 3]]))
    assert tied.tolist() == [[3, 3]]  # the smallest label wins


def test_boundaries():
    """15 boundary pixels of segments, 16 of clusters, 12 of both; all are beside one of the other.

    clusters         segments
    . . x x . .      . x x . . .
    x x x x x x      . x x . x x
    x x x x x x      . x x x x x
    . . x x . .      . x x x x .
    """
    assert boundary_scores(CLUSTERS, SEGMENTS, tolerance=0) == (12 / 15, 12 / 16)
    assert boundary_scores(CLUSTERS, SEGMENTS, tolerance=1) == (1.0, 1.0)


def test_compactness():
    """2 x 3 pixels: 4π · 6 / 10²; a single pixel, as every square: 4π / 4²."""
    assert compactness(CLUSTERS) == pytest.approx(0.24 * pi)
    assert compactness([[7]]) == pytest.approx(pi / 4)


def test_explained_variation():
    """0 2 | 4 6 has the mean 3; the means 1 and 5 explain 4 · 2² of 3² + 1² + 1² + 3²."""
    image = [[0, 2, 4, 6]]
    assert explained_variation([[0, 0, 1, 1]], image) == 16 / 20
    assert explained_variation([[0, 1, 2, 3]], image) == 1.0
    assert explained_variation([[0, 0, 0, 0]], image) == 0.0
    assert isnan(explained_variation(CLUSTERS, np.full((4, 6, 3), 7)))  # one color


@pytest.mark.parametrize(
    "ignore", [3, np.int64(3), SEGMENTS == 3, torch.from_numpy(SEGMENTS == 3)], ids=type
)
def test_void(ignore):
    """Without segment 3, 20 pixels are left, and cluster 3 has none but two of segment 2.

    UE: 8 / 20. Levin: (12 - 8) / 8 = 1/2 and (6 + 6 + 6 + 2 - 12) / 12 = 2/3. ASA: 16 / 20.
    Segment 2 has a boundary to segment 1 alone: 8 pixels, 6 of them on boundaries of clusters. Of
    these, 7 have void beside them; 6 of the other 9 are on the boundary.
    """
    maps, options = (CLUSTERS, SEGMENTS), dict(ignore=ignore)
    assert undersegmentation_error(*maps, **options) == 8 / 20
    levin = undersegmentation_error(*maps, form="levin", **options)
    assert levin == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert achievable_segmentation_accuracy(*maps, **options) == 0.8
    errors = np.argwhere(undersegmentation_map(*maps, **options))
    assert errors.tolist() == [[0, 2], [1, 2], [2, 2], [3, 2]]
    assert boundary_scores(*maps, tolerance=0, **options) == (6 / 8, 6 / 9)
    assert majority_map(*maps, **options)[2:, 3:].tolist() == [[2, 2, 2]] * 2


def test_nothing_but_void():
    maps = (CLUSTERS, SEGMENTS * 0)
    scores = [
        *(undersegmentation_error(*maps, form=form, ignore=0) for form in FORMS),
        achievable_segmentation_accuracy(*maps, ignore=0),
        *boundary_scores(*maps, ignore=0),
    ]
    assert scores == pytest.approx([nan] * 5, nan_ok=True)
    assert not undersegmentation_map(*maps, ignore=0).any()
    assert (majority_map(*maps, ignore=0) == -1).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_undersegmentation_error_of_sets(size, form):
    for seed in range(5):
        labels, truth = random_maps(size, seed=seed)
        expected = reference.undersegmentation_error(
            torch.from_numpy(labels), torch.from_numpy(truth), form
        )
        error = undersegmentation_error(labels, truth, form=form)
        assert error == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_undersegmentation_error_counts_the_pixels_of_the_map(size):
    """Once, or twice where another segment covers more than half of the cluster."""
    for seed in range(5):
        labels, truth = random_maps(size, segments=3, seed=seed)
        void = np.random.default_rng(seed).random(size) < 0.2
        counted = undersegmentation_map(labels, truth, ignore=void)
        assert not counted[void].any()
        twice = sum(
            int((counted & inside).sum())
            for inside in ((labels == label) & ~void for label in range(5))
            if not counted[inside].all()
        )
        if not void.all():
            error = undersegmentation_error(labels, truth, ignore=void)
            assert error * (~void).sum() == pytest.approx(counted.sum() + twice)


def test_no_labeling_is_more_accurate():
    for seed in range(5):
        labels, truth = random_maps((4, 5), clusters=4, segments=3, seed=seed)
        labels, truth = torch.from_numpy(labels), torch.from_numpy(truth)
        every = reference.labelings(labels, [0, 1, 2])
        best = (every == truth).double().mean(dim=(1, 2)).max()
        accuracy = achievable_segmentation_accuracy(labels, truth)
        assert accuracy == pytest.approx(float(best))
        assert (majority_map(labels, truth) == truth.numpy()).mean() == pytest.approx(accuracy)


def test_overlaps_are_the_contingency_table():
    labels, truth = random_maps((13, 7))
    table = overlaps(labels, truth)
    expected = contingency_table(labels, truth).toarray()
    assert np.array_equal(table.pixels.toarray(), expected)
    assert np.array_equal(table.cluster_sizes, expected.sum(1))
    assert np.array_equal(table.segment_sizes, expected.sum(0))
    assert np.array_equal(table.majority(), expected.argmax(1))
    assert table.total == labels.size


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (5, 8), (13, 7)])
@pytest.mark.parametrize("tolerance", [0, 1, 3])
def test_boundaries_of_loops_and_of_scikit_image(size, tolerance):
    random = np.random.default_rng(0)
    labels, truth = (np.kron(random.integers(3, size=size), np.ones((2, 3), int)) for _ in "ab")
    ours, theirs = (reference.boundary_pixels(torch.from_numpy(m)) for m in (labels, truth))
    recall, precision = boundary_scores(labels, truth, tolerance=tolerance)
    assert recall == pytest.approx(reference.boundary_hits(theirs, ours, tolerance))
    assert precision == pytest.approx(reference.boundary_hits(ours, theirs, tolerance))

    found, true = (find_boundaries(m, connectivity=1, mode="thick") for m in (labels, truth))
    assert np.array_equal(boundaries(labels), found)
    away = ndimage.distance_transform_cdt(~found, metric="chessboard")
    assert recall == pytest.approx((away[true] <= tolerance).mean())


@pytest.mark.parametrize(
    ("size", "tolerance"),
    # 0.0025 · √(321² + 481²) = 1.4; · √(1024² + 2048²) = 5.7; · √(192² + 256²) = 0.8.
    [((321, 481), 1), ((1024, 2048), 6), ((192, 256), 1), ((40, 40), 0)],
)
def test_boundary_tolerance(size, tolerance):
    assert boundary_tolerance(*size) == tolerance
    labels, truth = np.zeros((2, *size), int)
    labels[:, 8:], truth[:, 8 + tolerance + 1 :] = 1, 1  # one of two columns is near
    assert boundary_scores(labels, truth)[0] == 0.5


@pytest.mark.parametrize("size", SIZES)
def test_compactness_of_loops(size):
    labels, _ = random_maps(size)
    expected = reference.compactness(torch.from_numpy(labels))
    assert compactness(labels) == pytest.approx(expected)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_explained_variation_of_residuals(channels):
    labels, _ = random_maps((13, 7))
    image = np.random.default_rng(0).integers(256, size=(13, 7, *channels)).astype(np.uint8)
    tensor = torch.from_numpy(image.reshape(13, 7, -1)).permute(2, 0, 1).double()
    expected = reference.explained_variation(torch.from_numpy(labels), tensor)
    assert explained_variation(labels, image) == pytest.approx(expected)
    assert explained_variation(labels, torch.from_numpy(image)) == pytest.approx(expected)


@pytest.mark.parametrize("size", [(21, 13), (40, 56), (64, 8)])
def test_finer_levels_are_no_worse(size):
    """Any labeling of clusters is one of their parts; the other scores behave alike."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in (0, 1, 2)]
    assignments = [torch.rand(1, 9, *s, generator=generator).softmax(1) for s in sizes]
    levels = [level[0].numpy() for level in hierarchical_clusters(assignments)]
    truth = np.kron(random_maps((8, 8))[1], np.ones((8, 8), int))[: size[0], : size[1]]
    image = np.random.default_rng(0).random((*size, 3))
    void = np.random.default_rng(1).random(size) < 0.1
    for score in (
        lambda labels: -undersegmentation_error(labels, truth, ignore=void),
        lambda labels: -undersegmentation_error(labels, truth, form="levin", ignore=void),
        lambda labels: achievable_segmentation_accuracy(labels, truth, ignore=void),
        lambda labels: boundary_scores(labels, truth, ignore=void, tolerance=0)[0],
        lambda labels: explained_variation(labels, image),
        number_of_clusters,
    ):
        scores = [score(labels) for labels in levels]
        assert all(fine >= coarse for fine, coarse in pairwise(scores))
    # Equality would hold for clusterings that do not differ.
    accuracies = [achievable_segmentation_accuracy(level, truth) for level in levels]
    assert accuracies[0] > accuracies[-1]


def test_labels_of_any_kind():
    """Sparse, negative, unsigned, tensors, lists: the values of labels do not matter."""
    expected = undersegmentation_error(CLUSTERS, SEGMENTS)
    for labels in (
        CLUSTERS * 10**12 - 5,
        CLUSTERS.astype(np.uint8),
        torch.from_numpy(CLUSTERS).int(),
        CLUSTERS.tolist(),
        CLUSTERS[:, ::-1][:, ::-1],
    ):
        assert undersegmentation_error(labels, SEGMENTS) == expected
        assert number_of_clusters(labels) == 4
    assert undersegmentation_error(CLUSTERS, SEGMENTS * 2**40) == expected
    assert (majority_map(CLUSTERS, SEGMENTS * 2**40) % 2**40 == 0).all()


BAD_LABELS = r"labels as \(H, W\) integers, one pixel at least, got"
BAD_IGNORE = r"expected ignore as an integer or as a bool mask of the size \(4, 6\), got"


@pytest.mark.parametrize(
    ("labels", "truth", "options", "message"),
    [
        (CLUSTERS.astype(float), SEGMENTS, {}, f"{BAD_LABELS} float64"),
        (CLUSTERS > 1, SEGMENTS, {}, f"{BAD_LABELS} bool"),
        (CLUSTERS[:0], SEGMENTS[:0], {}, f"{BAD_LABELS} int64"),
        (CLUSTERS, SEGMENTS[None], {}, r"ground_truth as .* of \(1, 4, 6\)"),
        (CLUSTERS, SEGMENTS[:2], {}, r"of one size, got labels of \(4, 6\) .* of \(2, 6\)"),
        (CLUSTERS, SEGMENTS, dict(ignore=0.5), f"{BAD_IGNORE} float64"),
        (CLUSTERS, SEGMENTS, dict(ignore=SEGMENTS), f"{BAD_IGNORE} int64"),
        (CLUSTERS, SEGMENTS, dict(ignore=np.zeros((2, 2), bool)), f"{BAD_IGNORE} bool"),
        (CLUSTERS, SEGMENTS, dict(form="bergh"), "form 'neubert-protzel' or 'levin', got 'bergh'"),
    ],
)
def test_bad_arguments(labels, truth, options, message):
    with pytest.raises(ValueError, match=message):
        undersegmentation_error(labels, truth, **options)


def test_bad_tolerance_and_image():
    with pytest.raises(ValueError, match="tolerance of 0 pixels or more, got -1"):
        boundary_scores(CLUSTERS, SEGMENTS, tolerance=-1)
    with pytest.raises(ValueError, match=r"of the size \(4, 6\) .* got \(6, 4, 3\)"):
        explained_variation(CLUSTERS, np.zeros((6, 4, 3)))
