"""Checks of annotation files: faults that raise no clear error in training or evaluation."""

from .coco import read_coco
from .faults import Fault
from .files import check_image
from .instances import check_instances, check_instances_json, check_masks
from .panoptic import check_panoptic, check_panoptic_json, check_panoptic_png
from .semantic import check_label_maps, check_semantic

__all__ = [
    "Fault",
    "check_image",
    "check_instances",
    "check_instances_json",
    "check_label_maps",
    "check_masks",
    "check_panoptic",
    "check_panoptic_json",
    "check_panoptic_png",
    "check_semantic",
    "read_coco",
]
