# HCFormer+ with a ResNet-50 for panoptic segmentation of COCO.
_base_ = ["hcformer_r50.py", "parts/encoder.py"]

model = dict(
    neck=dict(**_base_.hc_encoder, in_channels=_base_.hc_channels),
    panoptic_head=dict(in_channels=_base_.hc_encoder.out_channels),
)
