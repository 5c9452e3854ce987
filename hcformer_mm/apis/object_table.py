"""Tables of the segments of an image: rows of numbers, and outlines as GeoJSON."""

from typing import Any

import numpy as np
import shapely
from scipy.ndimage import center_of_mass

from ..structures.arrays import Mask
from ..structures.panoptic import Classes, Panoptic
from .coco_format import encode_panoptic

COLUMNS = (
    *("image", "id", "class", "thing", "score", "area"),
    *("left", "top", "width", "height", "x", "y"),
)
"""Columns of a table. All but the first are keys of :func:`object_rows`."""


def object_rows(panoptic: Panoptic, classes: Classes) -> list[dict[str, Any]]:
    """Describe each segment by a row.

    Lengths are in pixels of the image, whose upper left corner is (0, 0), so that the center of its
    first pixel is (0.5, 0.5).

    Args:
        panoptic: Segments of an image.
        classes: Their classes.

    Returns:
        By segment, ``id``, that of COCO's panoptic format; ``class``, its name; ``thing``, 1 for an
        object and 0 for stuff; ``score``, if it is known; ``area``; ``left``, ``top``, ``width``
        and ``height`` of its box; and its centroid, ``x`` and ``y``.
    """
    ids, info = encode_panoptic(panoptic, range(len(classes.names)))
    centers = center_of_mass(ids > 0, ids, [segment["id"] for segment in info])
    return [
        {key: segment[key] for key in ("id", "area", "score") if key in segment}
        | dict(zip(("left", "top", "width", "height"), segment["bbox"], strict=True))
        | {
            "class": classes.names[segment["category_id"]],
            "thing": int(classes.is_object(segment["category_id"])),
            "x": round(float(x) + 0.5, 2),
            "y": round(float(y) + 0.5, 2),
        }
        for segment, (y, x) in zip(info, centers, strict=True)
    ]


def to_geojson(panoptic: Panoptic, classes: Classes) -> dict[str, Any]:
    """Outline each segment by a feature of GeoJSON, with the properties that QuPath reads.

    Objects are its detections, and stuff its annotations. Outlines follow the edges of pixels, with
    y down, so they have exactly the area of the segments. Segments of several parts are
    ``MultiPolygon``, and holes are inner rings.

    Args:
        panoptic: Segments of an image.
        classes: Their classes.

    Returns:
        A ``FeatureCollection``; the ``id`` of a feature's properties is that of
        :func:`object_rows`.
    """
    ids, info = encode_panoptic(panoptic, range(len(classes.names)))
    colors = classes.colors()
    features = []
    for segment in info:
        category, (left, top, width, height) = segment["category_id"], segment["bbox"]
        mask = ids[top : top + height, left : left + width] == segment["id"]
        properties = dict(
            id=segment["id"],
            objectType="detection" if classes.is_object(category) else "annotation",
            classification=dict(name=classes.names[category], color=colors[category].tolist()),
            measurements={key: segment[key] for key in ("area", "score") if key in segment},
        )
        geometry = shapely.geometry.mapping(_outline(mask, left, top))
        features.append(dict(type="Feature", geometry=geometry, properties=properties))
    return dict(type="FeatureCollection", features=features)


def _outline(mask: Mask, left: int, top: int) -> shapely.Geometry:
    """The area of the pixels of a mask ``(h, w)``, whose corner is ``left`` and ``top``."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8))
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    runs = shapely.box(left + starts, top + rows, left + ends, top + rows + 1)
    # Without the corners of runs that lie on a straight edge.
    return shapely.simplify(shapely.union_all(runs), 0)
