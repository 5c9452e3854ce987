"""Masks of COCO annotations."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

from ...utils.errors import cut

SHORT, SHORT_FIRST = "short polygon", "short first polygon"
"""Kinds of faults of some polygons of several; the others make a mask."""


def encode_annotation(annotation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Run-length encode the segmentation of an annotation.

    The mask is the one that MMDetection trains on: polygons of fewer than three points, and of an
    odd number of coordinates, are left out if there are others.

    Args:
        annotation: COCO's entry, whose ``segmentation`` is a list of polygons, or run lengths as a
            list, a string or bytes.
        size: Height and width of the image, in pixels.

    Returns:
        COCO's compressed run lengths, ``size`` and ``counts``.

    Raises:
        ValueError: As :func:`mask_fault` tells; a polygon reaches far outside the image, for which
            pycocotools takes all memory; or compressed run lengths are malformed or do not add up
            to the image, so that it fills the mask with chance values.
    """
    fault = mask_fault(annotation, size)
    if fault and fault[0] not in (SHORT, SHORT_FIRST):
        raise _refusal(annotation, fault[1])
    found: Any = annotation["segmentation"]
    if not isinstance(found, dict):
        polygons = [polygon for polygon in found if _has_area(polygon)]
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        low, high = points.min(axis=0), points.max(axis=0)
        if is_far_outside(low, high, np.array(size[::-1])):
            raise _refusal(
                annotation,
                f"expected polygons within the image of {tuple(size)}, height and width, got some "
                f"from {low.tolist()} to {high.tolist()}",
            )
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    if isinstance(found["counts"], list):
        return coco_mask.frPyObjects(found, *size)
    try:
        whole = _compressed_pixels(found["counts"]) == size[0] * size[1]
        coco_mask.decode(found)  # raises an error for negative runs and other characters
    except (ValueError, OverflowError):
        whole = False
    if not whole:
        raise _refusal(
            annotation,
            f"expected run lengths of all pixels of the size {tuple(size)}, got "
            f"{cut(repr(found['counts']), 60)}",
        )
    return found


def _refusal(annotation: Mapping[str, Any], message: str) -> ValueError:
    number = annotation.get("id")
    return ValueError(f"{message}; correct annotation {number}, or leave it out")


def mask_fault(annotation: Mapping[str, Any], size: tuple[int, int]) -> tuple[str, str] | None:
    """Tell why mmdet or pycocotools cannot use the segmentation of an annotation.

    Neither polygons are drawn nor compressed run lengths decoded.

    Args:
        annotation: COCO's entry.
        size: Height and width of the image, in pixels.

    Returns:
        Kind and message of the fault; None if none is found.
    """
    mask: Any = annotation.get("segmentation")
    if not mask:
        return (
            "no mask",
            f"expected polygons or run lengths as segmentation, got {mask}, and mmdet stops",
        )
    if isinstance(mask, dict):
        return _run_lengths_fault(mask, size)
    short, total = [], 0.0
    try:
        for polygon in mask:
            total += sum(polygon)
            if not _has_area(polygon):
                short.append(polygon)
    except (TypeError, OverflowError):
        return (
            "polygon",
            f"expected a list of polygons, each a list of numbers, got {cut(repr(mask), 60)}",
        )
    if not isfinite(total):
        return "polygon", "a coordinate is not finite, and pycocotools takes all memory"
    if len(short) == len(mask):
        return (
            "no polygon",
            f"expected a polygon of x, y of at least 3 points, got {cut(mask, 60)}: training "
            "leaves the object out, and pycocotools stops or takes it for a box",
        )
    if len(mask[0]) < 5:
        return (
            SHORT_FIRST,
            f"expected a polygon of x, y of at least 3 points before others, got {cut(mask, 60)}: "
            "pycocotools judges all by the first, and stops",
        )
    if short:
        return (
            SHORT,
            f"training leaves out {cut(short, 60)}, which is no list of x, y of at least 3 points",
        )
    return None


def _has_area(polygon: list[float]) -> bool:
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def _run_lengths_fault(mask: Mapping[str, Any], size: tuple[int, int]) -> tuple[str, str] | None:
    counts: Any = mask.get("counts")
    if mask.get("size") not in ([*size], (*size,)):
        return (
            "mask of another size",
            f"expected run lengths of the size {[*size]}, height and width, as the image has, got "
            f"{mask.get('size')}",
        )
    if isinstance(counts, str | bytes):
        if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
            return "run lengths", "expected counts without b'', which Python puts around bytes"
        return None  # encode_annotation reads them
    try:
        fits = min(counts) >= 0 and sum(counts) == size[0] * size[1]
    except (TypeError, ValueError):
        return "run lengths", f"expected counts as text or numbers, got {cut(counts, 60)}"
    if not fits:
        return (
            "run lengths",
            f"expected counts from 0 on that add up to {size[0] * size[1]} pixels, got "
            f"{sum(counts)}: pycocotools fills the mask with chance values or stops",
        )
    return None


def is_far_outside(low: ArrayLike, high: ArrayLike, bounds: NDArray[Any]) -> Any:
    """Whether outlines reach outside their image by more than its size.

    Args:
        low: Left and top, ``(..., 2)``.
        high: Right and bottom, ``(..., 2)``.
        bounds: Width and height of the image, ``(..., 2)``.

    Returns:
        Bool ``(...)``.
    """
    return np.maximum(-bounds - low, high - 2 * bounds).max(axis=-1) > 0


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
    return sum(runs)
