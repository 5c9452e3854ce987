# The HCFormer of `make demo` with half the channels in its backbone, so that its weights are small.
_base_ = "hcformer_r18_shapes-panoptic.py"

model = dict(
    backbone=dict(backbone=dict(stem_channels=32, base_channels=32)),
    panoptic_head=dict(in_channels=256),
)
