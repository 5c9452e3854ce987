# HCFormer with a Swin-S for panoptic segmentation of COCO.
_base_ = ["hcformer_panoptic.py", "parts/swin_s.py"]

model = dict(backbone=_base_.hc_backbone, panoptic_head=dict(in_channels=_base_.hc_channels))
