"""Segmentations are read as in training, and refused if pycocotools reads them wrongly."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from hcformer_mm.datasets import LoadInstanceAnnotations
from hcformer_mm.evaluation.functional.coco_masks import (
    SHORT,
    SHORT_FIRST,
    encode_annotation,
    is_far_outside,
    mask_fault,
)

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("as_text", [True, False])
def test_compressed_run_lengths_are_kept(seed, as_text):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(rng.random(rng.integers(1, 60, 2)) < rng.random(), np.uint8)
    rle = coco_mask.encode(mask)
    if as_text:
        rle["counts"] = rle["counts"].decode()
    encoded = encode_annotation(dict(id=1, segmentation=rle), mask.shape)
    assert np.array_equal(coco_mask.decode(encoded), mask)


@pytest.mark.parametrize("counts", ["", "0", b"", "P1", "P137000000000"])
def test_compressed_run_lengths_that_end_too_early(counts):
    """The rest of the mask would be what was in memory before."""
    segmentation = dict(size=[10, 20], counts=counts)
    with pytest.raises(ValueError, match=r"run lengths of all pixels of the size \(10, 20\), got"):
        encode_annotation(dict(id=1, segmentation=segmentation), (10, 20))


def test_negative_run_lengths():
    """100, -50 and 150 pixels add up to the image."""
    segmentation = dict(size=[10, 20], counts="T3^Nf4")
    with pytest.raises(ValueError, match=r"run lengths of all pixels of the size \(10, 20\), got"):
        encode_annotation(dict(id=1, segmentation=segmentation), (10, 20))


@pytest.mark.parametrize("number", [NAN, INFINITE, -INFINITE, 1e9, -1e9])
def test_coordinates_far_away(number):
    """For these pycocotools would take all memory."""
    message = "polygons within the image of" if np.isfinite(number) else "is not finite"
    with pytest.raises(ValueError, match=f"{message}.*; correct annotation 1, or leave it out"):
        encode_annotation(dict(id=1, segmentation=[[number, 1, 8, 1, 8, 8]]), (10, 20))


def test_a_coordinate_of_the_first_polygon_that_is_not_finite():
    polygons = [[NAN, 1, 8, 1, 8, 8], [1, 1, 8, 1, 8, 8]]
    assert "is not finite" in mask_fault(dict(segmentation=polygons), (10, 20))[1]


def test_coordinates_a_little_outside():
    """By more than the height, but less than the width."""
    polygon = [[-12, 2, 32, 2, 32, 12, -12, 12]]
    assert coco_mask.area(encode_annotation(dict(id=1, segmentation=polygon), (10, 20))) == 160


def test_outlines_reach_outside_by_the_size_of_the_image():
    bounds = np.array([20, 10])
    low, high = np.array([-20, -10]), np.array([40, 20])
    assert not is_far_outside(low, high, bounds)
    for side in np.eye(2):
        assert is_far_outside(low - side / 2, high, bounds)
        assert is_far_outside(low, high + side / 2, bounds)


BOX = [1, 0, 5, 0, 5, 3, 1, 3]
OTHER = [2.5, 4, 9, 4, 9, 9.5, 3, 9]


@pytest.mark.parametrize(
    "polygons",
    [
        [BOX],
        [BOX, OTHER],
        [BOX, [0, 0, 9, 9]],
        [[0, 0, 9, 9], BOX],
        [[], BOX, [7, 7]],
        [BOX, [2, 5, 9, 5, 9, 9, 2]],
        [BOX, [5, 5, 9, 9, 9]],
    ],
    ids=["one", "two", "two points", "two points first", "none and one", "odd", "odd and short"],
)
def test_masks_are_those_of_training(polygons):
    """Polygons that training leaves out are left out, whatever pycocotools makes of them."""
    size = (10, 12)
    instance = dict(mask=polygons, bbox=[0, 0, 9, 9], bbox_label=0, ignore_flag=0)
    sample = dict(img_path="a.jpg", instances=[instance], ori_shape=size, height=10, width=12)
    trained = LoadInstanceAnnotations(with_bbox=True, with_mask=True)(sample)
    assert not trained["gt_ignore_flags"].any()
    found = coco_mask.decode(encode_annotation(dict(id=1, segmentation=polygons), size))
    assert np.array_equal(found, trained["gt_masks"].masks[0])
    assert found.any()


@pytest.mark.parametrize("polygons", [[[0, 0, 9, 9]], [[]], [[1, 2, 3], [4, 5, 6, 7]]])
def test_objects_that_training_leaves_out_are_refused(polygons):
    instance = dict(mask=polygons, bbox=[0, 0, 9, 9], bbox_label=0, ignore_flag=0)
    sample = dict(img_path="a.jpg", instances=[instance], ori_shape=(10, 12), height=10, width=12)
    assert LoadInstanceAnnotations(with_bbox=True, with_mask=True)(sample)["gt_ignore_flags"].all()
    with pytest.raises(ValueError, match="expected a polygon of x, y of at least 3 points, got"):
        encode_annotation(dict(id=1, segmentation=polygons), (10, 12))


@pytest.mark.parametrize(("first", "kind"), [([0, 0, 9, 9], SHORT_FIRST), ([5, 5, 9, 9, 9], SHORT)])
def test_short_polygons_before_others(first, kind):
    """Of four numbers pycocotools makes a box; others it takes for polygons."""
    assert mask_fault(dict(segmentation=[first, BOX]), (10, 12))[0] == kind
