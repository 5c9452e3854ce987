# HCFormer with a MobileNetV4-Conv-S and the small head, for panoptic segmentation of COCO.
_base_ = ["hcformer_panoptic.py", "parts/mobilenetv4_small.py"]

model = dict(backbone=_base_.hc_backbone, panoptic_head=_base_.small_head)
