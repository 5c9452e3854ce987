"""Visualizer: mmdet's, which also draws images in which nothing is found."""

from typing import Any

from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import PixelData
from numpy.typing import NDArray

from ..registry import VISUALIZERS


@VISUALIZERS.register_module()
class Visualizer(DetLocalVisualizer):
    """mmdet's ``DetLocalVisualizer``, which fails if all pixels of an image are void."""

    def _draw_panoptic_seg(
        self, image: NDArray[Any], panoptic_seg: PixelData, classes: list[str], palette: Any
    ) -> NDArray[Any]:
        if (panoptic_seg.sem_seg == len(classes)).all():
            return image
        drawn: NDArray[Any] = super()._draw_panoptic_seg(image, panoptic_seg, classes, palette)
        return drawn
