# Semantic FPN from scratch: FCN-32s with a pixel decoder in place of clusters.
_base_ = [
    "../_base_/models/fpn.py",
    "../_base_/models/parts/per_pixel_r18.py",
    "../_base_/datasets/shapes_semantic_512x384.py",
    "../_base_/schedules/shapes_per_pixel.py",
    "../_base_/mmseg_runtime.py",
]

channels = 64
model = dict(
    data_preprocessor=_base_.small_data_preprocessor,
    backbone=_base_.small_backbone,
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels),
    decode_head=dict(_base_.small_head, in_channels=[channels] * 4, channels=32),
    auxiliary_head=dict(_base_.small_auxiliary_head, in_channels=channels),
)
default_hooks = dict(checkpoint=_base_.checkpoints)
