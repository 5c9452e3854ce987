"""Drawings of images of every size, with any number of segments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.visualization import (
    LAYOUTS,
    cluster_sheet,
    draw_boundaries,
    draw_errors,
    draw_hierarchy,
    draw_panoptic,
    mean_colors,
    random_colors,
)
from tests.helpers.label_maps import SIZES, label_maps

CLASSES = Classes(["cup", "field", "猫 \n"], frozenset(["cup"]))
IMAGES = SIZES.flatmap(lambda size: st.tuples(arrays(np.uint8, (*size, 3)), label_maps(size)))
SEVERAL = SIZES.flatmap(
    lambda size: st.tuples(arrays(np.uint8, (*size, 3)), *[label_maps(size)] * 3)
)


def segmentation(data, labels):
    """Segments of any ids, of which some are void or to ignore."""
    categories = {
        i: data.draw(st.integers(0, 2))
        for i in np.unique(labels).tolist()
        if data.draw(st.booleans())
    }
    ignore = data.draw(st.none() | arrays(np.bool_, labels.shape))
    return Panoptic(labels, categories, ignore)


@pytest.mark.filterwarnings("ignore:no font of this system")
@given(st.data(), SEVERAL)
def test_segments_of_any_image(data, given_maps):
    image, *maps = given_maps
    first, second, _ = (segmentation(data, labels) for labels in maps)
    before = image.copy()
    for like in (None, second):
        drawn = draw_panoptic(image, first, CLASSES, like=like)
        assert drawn.dtype == np.uint8 and drawn.shape == image.shape
        assert np.array_equal(drawn, draw_panoptic(image, first, CLASSES, like=like))
    assert np.array_equal(image, before)


@given(IMAGES, st.integers(0, 2**16))
def test_clusters_of_any_labels(pair, seed):
    """Sparse and negative labels need no more memory than others."""
    image, labels = pair
    dense = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    before = image.copy()
    for draw in (mean_colors, draw_boundaries, lambda i, m: random_colors(m, seed=seed)):
        drawn = draw(image, labels)
        assert drawn.dtype == np.uint8 and drawn.shape == image.shape
        assert np.array_equal(drawn, draw(image, dense))
    means = mean_colors(image, labels)
    for label in np.unique(labels):
        expected = image[labels == label].mean(axis=0)
        assert np.abs(means[labels == label] - expected).max() <= 0.5
    colors = random_colors(labels)
    for first, second, same in (
        (colors[1:], colors[:-1], labels[1:] == labels[:-1]),
        (colors[:, 1:], colors[:, :-1], labels[:, 1:] == labels[:, :-1]),
    ):
        assert np.array_equal((first == second).all(-1), same)
    assert np.array_equal(
        draw_errors(image, labels > 0)[labels > 0][:, 0] == 220, labels[labels > 0] > 0
    )
    assert np.array_equal(image, before)


def test_sheets_of_extreme_ids():
    image = np.zeros((2, 3, 3), np.uint8)
    ids = np.array([[-(2**63), 2**63 - 1, 0]] * 2)
    drawn = [
        cluster_sheet(
            image,
            [np.array([[0, 1, 1]] * 2)],
            classes=CLASSES,
            ground_truth=Panoptic(segments, {segments[0, 0]: 0, segments[0, 1]: 1}),
            side=30,
        )
        for segments in (ids, np.array([[1, 3, 2]] * 2))
    ]
    assert np.array_equal(*drawn)


@pytest.mark.filterwarnings("ignore:no font of this system")
@given(st.data(), SEVERAL, st.sampled_from(sorted(LAYOUTS)))
def test_sheets_of_any_image(data, given_maps, layout):
    image, *maps = given_maps
    levels = [np.unique(m, return_inverse=True)[1].reshape(m.shape) for m in maps[:2]]
    prediction, truth = (data.draw(st.booleans()) and segmentation(data, maps[2]) for _ in "ab")
    drawn = cluster_sheet(
        image,
        levels,
        classes=CLASSES,
        prediction=prediction or None,
        ground_truth=truth or None,
        layout=layout,
        side=data.draw(st.sampled_from([1, 8, 40])),
    )
    assert drawn.dtype == np.uint8 and drawn.ndim == 3


@given(IMAGES, IMAGES)
def test_maps_of_other_sizes(pair, other):
    image, labels = pair
    wrong = [image.astype(float), image[..., :1], image[0], np.zeros((0, 4, 3), np.uint8)]
    if other[0].shape != image.shape:
        wrong.append(other[0])
    panoptic = Panoptic(labels, {})
    for bad in wrong:
        for draw in (
            lambda i: draw_panoptic(i, panoptic, CLASSES),
            lambda i: mean_colors(i, labels),
            lambda i: draw_boundaries(i, labels),
            lambda i: draw_hierarchy(i, [labels]),
            lambda i: draw_errors(i, labels > 0),
            lambda i: cluster_sheet(i, [labels], classes=CLASSES, side=8),
        ):
            with pytest.raises(ValueError, match=r"a uint8 RGB image|of the image's size"):
                draw(bad)


def test_300_objects():
    segments = np.kron(np.arange(300).reshape(15, 20), np.ones((9, 9), int))
    image = np.full((*segments.shape, 3), 90, np.uint8)
    drawn = draw_panoptic(image, Panoptic(segments, dict.fromkeys(range(300), 0)), CLASSES)
    centers = drawn[4::9, 4::9].reshape(-1, 3)
    assert len(np.unique(centers, axis=0)) > 200


@pytest.mark.parametrize("category", [3, -1])
def test_classes_that_do_not_exist(category):
    image = np.zeros((4, 5, 3), np.uint8)
    panoptic = Panoptic(np.ones((4, 5), int), {1: category})
    with pytest.raises(ValueError, match=rf"of 3 classes, got classes \[{category}\]"):
        draw_panoptic(image, panoptic, CLASSES)
