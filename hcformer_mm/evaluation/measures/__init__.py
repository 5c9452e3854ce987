"""What the quality of a segmentation is measured by, of predictions and of oracles alike."""

from .mask_ap import MaskAP
from .mean_iou import MeanIoU
from .measure import Measure, PictureTruth
from .panoptic_quality import PanopticQuality

__all__ = ["MaskAP", "MeanIoU", "Measure", "PanopticQuality", "PictureTruth"]
