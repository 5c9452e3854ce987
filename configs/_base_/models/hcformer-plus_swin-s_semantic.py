# HCFormer+ with a Swin-S for semantic segmentation; decode_head.num_classes is the dataset's.
_base_ = ["hcformer_swin-s_semantic.py", "parts/encoder.py"]

model = dict(
    neck=dict(**_base_.hc_encoder, in_channels=_base_.hc_channels),
    decode_head=dict(in_channels=_base_.hc_encoder.out_channels),
)
