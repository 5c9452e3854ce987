"""Sheets of one kind of fault of an image, with the faulty segments outlined."""

from collections.abc import Collection, Sequence

import numpy as np

from ..evaluation.measures.panoptic_faults import Fault
from ..structures.arrays import RGBImage
from ..structures.panoptic import Classes, Panoptic
from .arrays import panel_size, resize_image, resize_map
from .clusters import ERROR_COLOR, draw_boundaries
from .panels import Panel, sheet, text_height
from .panoptic import draw_panoptic


def fault_sheet(
    image: RGBImage,
    truth: Panoptic,
    prediction: Panoptic,
    faults: Sequence[Fault],
    *,
    classes: Classes,
    note: str = "",
    side: int = 640,
) -> RGBImage:
    """Draw image, ground truth and prediction side by side, with faulty segments outlined in red.

    Segments that lose no more than with oracle labels of the clusters are not outlined.

    Args:
        image: The image, ``(H, W, 3)``.
        truth: Its ground truth.
        prediction: The model's prediction.
        faults: Faults of one kind, whose true and predicted segments are outlined.
        classes: Names and colors of the classes.
        note: What to write over the image, after the kind.
        side: Approximate longer side of each panel in pixels.

    Returns:
        The sheet, RGB uint8 ``(H', W', 3)``.

    Raises:
        ValueError: A map is not of the image's size, or has a class that ``classes`` lacks.
    """
    size = panel_size(image.shape, target=side)
    large = resize_image(image, size)
    truth, prediction = (
        Panoptic(resize_map(one.segments, size), one.categories) for one in (truth, prediction)
    )
    panels = [Panel(large, faults[0].kind.replace("_", " ").capitalize(), note)]
    faults = [fault for fault in faults if fault.lost > fault.decoding]
    for title, panoptic, faulty in (
        ("Ground truth", truth, {one.true for one in faults if one.true is not None}),
        ("Prediction", prediction, {one.found for one in faults if one.found is not None}),
    ):
        text = round(1.1 * text_height(size[1]))
        drawn = draw_panoptic(large, panoptic, classes, like=truth, text=text)
        number = f"{len(faulty)} at fault" if faulty else ""
        panels.append(Panel(_outlined(drawn, panoptic, faulty), title, number))
    return sheet([panels])


def _outlined(drawn: RGBImage, panoptic: Panoptic, segments: Collection[int]) -> RGBImage:
    marked = np.where(np.isin(panoptic.segments, list(segments)), panoptic.segments, -1)
    width = 2 * max(1, round(max(drawn.shape) / 200))
    return draw_boundaries(drawn, marked, color=ERROR_COLOR, width=width)
