"""Sizes and numbers of the objects of a set, and the settings that follow from them."""

from collections.abc import Iterator
from math import ceil

import numpy as np

from .checks.coco import Entry

_CELLS = 2
_QUERIES = 1.5


def describe_set(content: Entry, stride: int = 32) -> Iterator[str]:
    """Yield lines on the objects of a panoptic set, with an image size and a number of queries.

    The size makes most objects as wide as two cells of the coarsest map, and there are half as many
    queries again as segments in the fullest image.

    Args:
        content: A panoptic JSON file without errors.
        stride: Stride of the coarsest map of the model, in pixels.
    """
    sizes = np.array([(one["height"], one["width"]) for one in content["images"]])
    height, width = np.median(sizes, axis=0)
    things = {one["id"] for one in content["categories"] if one["isthing"]}
    segments = [
        [info for info in one["segments_info"] if not info["iscrowd"]]
        for one in content["annotations"]
    ]
    sides = [
        info["area"] ** 0.5
        for infos in segments
        for info in infos
        if info["category_id"] in things and info["area"] > 0
    ]
    most = max(map(len, segments), default=0)
    yield f"{len(sizes)} images, {width:.0f} × {height:.0f} in the median (width × height)"
    if sides:
        tenth, quarter, half = np.percentile(sides, (10, 25, 50))
        yield (
            f"{len(sides)} objects; the side (root of the area) of a tenth is below {tenth:.0f} "
            f"pixels, of a quarter below {quarter:.0f}, of half below {half:.0f}"
        )
        for share, side in (("half", half), ("three quarters", quarter)):
            factor = _CELLS * stride / side
            yield (
                f"scale=({width * factor:.0f}, {height * factor:.0f}), {factor:.2g} times the size,"
                f" makes {share} of the objects {_CELLS} cells of stride {stride} wide"
            )
    yield (
        f"at most {most} segments in an image, so at least {ceil(_QUERIES * most)} queries: "
        "model.panoptic_head.num_queries"
    )
