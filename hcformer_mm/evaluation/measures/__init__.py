"""Quality measures of segmentations, for predictions and oracle labelings alike."""

from .mask_ap import MaskAP
from .mean_iou import MeanIoU
from .measure import ImageGroundTruth, Measure
from .panoptic_faults import Fault, panoptic_faults
from .panoptic_quality import PanopticQuality

__all__ = [
    "Fault",
    "ImageGroundTruth",
    "MaskAP",
    "MeanIoU",
    "Measure",
    "PanopticQuality",
    "panoptic_faults",
]
