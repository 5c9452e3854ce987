# The HCFormer of `make demo`: half the channels in the backbone, so that a step takes half the time
# and the weights are small.
_base_ = "hcformer_r18_shapes-panoptic.py"

model = dict(
    backbone=dict(backbone=dict(stem_channels=32, base_channels=32)),
    panoptic_head=dict(in_channels=256),
    # After a short training few classes are sure.
    test_cfg=dict(object_mask_thr=0.5),
)
