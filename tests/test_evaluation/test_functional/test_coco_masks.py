"""Segmentations that pycocotools reads wrongly without an error are refused."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from hcformer_mm.evaluation.functional.coco_masks import encode_annotation

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
    with pytest.raises(ValueError, match=r"run lengths of all pixels of the size \(10, 20\), as"):
        encode_annotation(dict(id=1, segmentation=segmentation), (10, 20))


@pytest.mark.parametrize("number", [NAN, INFINITE, -INFINITE, 1e9, -1e9])
def test_coordinates_far_away(number):
    """For these pycocotools would take all memory."""
    with pytest.raises(ValueError, match="expected polygons of three points or more"):
        encode_annotation(dict(id=1, segmentation=[[number, 1, 8, 1, 8, 8]]), (10, 20))


def test_coordinates_a_little_outside():
    polygon = [[-3, 2, 8, 2, 8, 12, -3, 12]]
    assert coco_mask.area(encode_annotation(dict(id=1, segmentation=polygon), (10, 20))) == 64
