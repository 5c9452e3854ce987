# HCFormer with an EfficientNet-Lite0 and the small head for panoptic segmentation of COCO.
_base_ = ["hcformer_panoptic.py", "parts/efficientnet_lite0_small.py"]

model = dict(backbone=_base_.hc_backbone, panoptic_head=_base_.small_head)
