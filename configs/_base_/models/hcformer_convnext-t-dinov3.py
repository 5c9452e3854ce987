# HCFormer with a ConvNeXt-T of DINOv3 for panoptic segmentation of COCO.
_base_ = ["hcformer_panoptic.py", "parts/convnext_tiny_dinov3.py"]

model = dict(backbone=_base_.hc_backbone, panoptic_head=dict(in_channels=_base_.hc_channels))
