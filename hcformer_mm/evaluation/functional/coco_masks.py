"""Masks of COCO annotations."""

from collections.abc import Mapping
from typing import Any

from pycocotools import mask as coco_mask


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
            of coordinates, such as two points, which pycocotools takes for a box; or run lengths
            are malformed or of another size.
    """
    found: Any = annotation.get("segmentation")
    fault = ValueError(
        f"expected polygons of three points or more, or run lengths of the size {tuple(size)}, as "
        f"segmentation of annotation {annotation.get('id')}, got {_shorten(found)}; correct it, or "
        "leave the annotation out"
    )
    try:
        if isinstance(found, list):
            if not found or any(len(polygon) < 6 or len(polygon) % 2 for polygon in found):
                raise fault
            return coco_mask.merge(coco_mask.frPyObjects(found, *size))
        if tuple(found["size"]) != tuple(size):
            raise fault
        if isinstance(found["counts"], list):
            if sum(found["counts"]) != size[0] * size[1] or min(found["counts"]) < 0:
                raise fault
            return coco_mask.frPyObjects(found, *size)
        coco_mask.decode(found)  # raises an error if the counts do not fit the size
        return found
    except (TypeError, KeyError, ValueError, OverflowError):
        raise fault from None


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}…"
