"""The Shapes dataset, rendered by ``make_shapes.py``: six thing and four stuff classes."""

from typing import Any, ClassVar

from mmdet.datasets import CocoDataset, CocoPanopticDataset
from mmseg.datasets import BaseSegDataset

from ..registry import DATASETS
from .shapes_generator import FIGURES, STUFF_TEXTURES

_PALETTE: dict[str, tuple[int, int, int]] = {
    "disc": (224, 64, 64),
    "box": (64, 112, 224),
    "triangle": (240, 192, 48),
    "star": (176, 80, 208),
    "cross": (48, 192, 208),
    "ring": (240, 128, 176),
    "grass": (80, 144, 64),
    "water": (96, 128, 160),
    "brick": (144, 80, 48),
    "sand": (192, 176, 128),
}

METAINFO: dict[str, Any] = {
    "classes": (*FIGURES, *STUFF_TEXTURES),
    "thing_classes": tuple(FIGURES),
    "stuff_classes": tuple(STUFF_TEXTURES),
    "palette": [_PALETTE[name] for name in (*FIGURES, *STUFF_TEXTURES)],
}
"""Classes in the order of their labels, things first, and their colors.

To add a class, add its figure or texture to the renderer and its color here.
"""


@DATASETS.register_module()
class ShapesPanopticDataset(CocoPanopticDataset):
    """Shapes for panoptic segmentation, all ten classes; takes mmdet's dataset arguments."""

    METAINFO = METAINFO


@DATASETS.register_module()
class ShapesInstanceDataset(CocoDataset):
    """Shapes for instance segmentation, the six things; takes mmdet's dataset arguments."""

    METAINFO: ClassVar[dict] = {
        "classes": METAINFO["thing_classes"],
        "palette": METAINFO["palette"][: len(METAINFO["thing_classes"])],
    }


@DATASETS.register_module()
class ShapesSemanticDataset(BaseSegDataset):
    """Shapes for semantic segmentation, all ten classes; takes mmseg's dataset arguments."""

    METAINFO: ClassVar[dict] = {"classes": METAINFO["classes"], "palette": METAINFO["palette"]}
