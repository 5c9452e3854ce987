"""Sheets of faults."""

import numpy as np
import pytest

from hcformer_mm.evaluation.measures.panoptic_faults import Fault
from hcformer_mm.structures import Classes, Panoptic
from hcformer_mm.visualization import fault_sheet
from hcformer_mm.visualization.clusters import ERROR_COLOR

CLASSES = Classes(["disc", "sky"], frozenset({"disc"}))
FAULTS = [
    Fault("wrong_class", 1, 0.5, 0.0, 3, None),
    Fault("wrong_class", 2, 0.5, 0.0, None, 7),
    Fault("background", 2, 0.5, 0.0, None, 8),
    Fault("missed", 1, 0.5, 1.0, 4, None),  # the clusters lose more
]


def red_columns(kind):
    """First and last column of red lines in the panels of truth and prediction, in pixels.

    The image of 20 x 40 pixels is shown at 160 x 320; a segment covers its left or right half.
    """
    left = np.repeat([[3] * 20 + [4] * 20], 20, axis=0)
    truth = Panoptic(left, {3: 0, 4: 1})
    prediction = Panoptic(left + 4, {7: 0, 8: 1})
    image = np.full((20, 40, 3), 90, np.uint8)
    faults = [fault for fault in FAULTS if fault.kind == kind]
    drawn = fault_sheet(image, truth, prediction, faults, classes=CLASSES, note="1.jpg", side=320)
    red = (drawn == ERROR_COLOR).all(-1).any(0)
    panels = np.array_split(red, 3)
    return [np.flatnonzero(panel) for panel in panels]


@pytest.mark.parametrize(
    ("kind", "outlined"),
    [
        ("wrong_class", [False, True, True]),
        ("background", [False, False, True]),
        ("missed", [False, False, False]),
    ],
)
def test_faulty_segments_are_outlined(kind, outlined):
    columns = red_columns(kind)
    assert [bool(len(one)) for one in columns] == outlined
    for one in columns:
        assert not len(one) or np.ptp(one) < 5  # the border of both halves
