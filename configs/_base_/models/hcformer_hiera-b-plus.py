# HCFormer with the Hiera-B+ of SAM 2 for panoptic segmentation of COCO.
_base_ = ["hcformer_panoptic.py", "parts/hiera_base_plus.py"]

model = dict(backbone=_base_.hc_backbone, panoptic_head=dict(in_channels=_base_.hc_channels))
