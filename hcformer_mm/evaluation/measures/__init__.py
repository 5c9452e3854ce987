"""What the quality of a segmentation is measured by, of predictions and of oracles alike."""

from .mask_ap import MaskAP
from .mean_iou import MeanIoU
from .measure import ImageGroundTruth, Measure
from .panoptic_quality import PanopticQuality

__all__ = ["ImageGroundTruth", "MaskAP", "MeanIoU", "Measure", "PanopticQuality"]
