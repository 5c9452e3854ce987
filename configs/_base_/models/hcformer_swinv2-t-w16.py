# HCFormer with a Swin V2-T for panoptic segmentation of COCO.
_base_ = ["hcformer_panoptic.py", "parts/swinv2_tiny.py"]

model = dict(backbone=_base_.hc_backbone, panoptic_head=dict(in_channels=_base_.hc_channels))
