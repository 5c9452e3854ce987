"""Annotations of other tools: label maps, labelme, YOLO and COCO instances as CVAT has them."""
