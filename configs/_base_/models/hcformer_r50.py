# HCFormer with a ResNet-50 for panoptic segmentation of COCO.
_base_ = ["hcformer_panoptic.py", "parts/resnet50.py"]

model = dict(backbone=_base_.hc_backbone, panoptic_head=dict(in_channels=_base_.hc_channels))
