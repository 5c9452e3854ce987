"""Masks of COCO annotations."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...utils.errors import cut


def encode_annotation(annotation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Run-length encode the segmentation of an annotation as pycocotools does.

    Args:
        annotation: COCO's entry, whose ``segmentation`` is a list of polygons, or run lengths as a
            list, a string or bytes.
        size: Height and width of the image, in pixels.

    Returns:
        COCO's compressed run lengths: ``size`` and ``counts``.

    Raises:
        ValueError: There is no segmentation; a polygon has fewer than three points or an odd number
            of coordinates, such as two points, which pycocotools takes for a box, or reaches far
            outside the image, for which it takes all memory; or run lengths are malformed, of
            another size, or do not add up to it, so that it fills the mask with chance values.
    """
    found: Any = annotation.get("segmentation")
    fault = ValueError(
        "expected polygons of three points or more, or run lengths of all pixels of the size "
        f"{tuple(size)}, as segmentation of annotation {annotation.get('id')}, got "
        f"{cut(repr(found), 60)}; correct it, or leave the annotation out"
    )
    try:
        if isinstance(found, list):
            if not found or any(len(polygon) < 6 or len(polygon) % 2 for polygon in found):
                raise fault
            points, bounds = np.concatenate([np.reshape(p, (-1, 2)) for p in found]), size[::-1]
            if not np.logical_and(
                points >= np.negative(bounds), points <= np.add(bounds, bounds)
            ).all():
                raise fault
            return coco_mask.merge(coco_mask.frPyObjects(found, *size))
        if tuple(found["size"]) != tuple(size):
            raise fault
        if isinstance(found["counts"], list):
            if sum(found["counts"]) != size[0] * size[1] or min(found["counts"]) < 0:
                raise fault
            return coco_mask.frPyObjects(found, *size)
        if _compressed_pixels(found["counts"]) != size[0] * size[1]:
            raise fault
        coco_mask.decode(found)  # raises an error for other characters
        return found
    except (TypeError, KeyError, ValueError, OverflowError):
        raise fault from None


def _compressed_pixels(counts: str | bytes) -> int:
    """Number of pixels in compressed run lengths, which pycocotools does not check.

    Every character holds 5 bits, lowest first, and whether more follow. From the fourth on, a run
    is stored as the difference from the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode() if isinstance(counts, str) else counts:
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= bool(code & 16) << shift  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return sum(runs) if min(runs, default=0) >= 0 else -1
