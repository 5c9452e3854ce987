# FCN-32s from scratch: the parent of HC-FCN-32s.
_base_ = [
    "../_base_/models/fcn32s.py",
    "../_base_/models/parts/per_pixel_r18.py",
    "../_base_/datasets/shapes_semantic_512x384.py",
    "../_base_/schedules/shapes_per_pixel.py",
    "../_base_/mmseg_runtime.py",
]

model = dict(
    data_preprocessor=_base_.small_data_preprocessor,
    backbone=_base_.small_backbone,
    decode_head=_base_.small_head,
    auxiliary_head=_base_.small_auxiliary_head,
)
default_hooks = dict(checkpoint=_base_.checkpoints)
