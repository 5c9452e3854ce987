"""Quality measures of segmentations, for predictions and oracle labelings alike."""

from .mask_ap import MaskAP
from .mean_iou import MeanIoU
from .measure import ImageGroundTruth, Measure
from .panoptic_quality import PanopticQuality

__all__ = ["ImageGroundTruth", "MaskAP", "MeanIoU", "Measure", "PanopticQuality"]
