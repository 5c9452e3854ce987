# The HCFormer of `make demo`: half the channels in the backbone, so that a step takes half the time
# and the weights are small, and a shorter schedule.
_base_ = "hcformer_r18_shapes-panoptic.py"

max_iters = 2400

model = dict(
    backbone=dict(backbone=dict(stem_channels=32, base_channels=32)),
    panoptic_head=dict(in_channels=256),
    # After a short training few classes are sure.
    test_cfg=dict(object_mask_thr=0.5),
)
warm_up, decay = _base_.param_scheduler
param_scheduler = [
    warm_up,
    dict(decay, end=max_iters, T_max=max_iters - _base_.warmup),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
