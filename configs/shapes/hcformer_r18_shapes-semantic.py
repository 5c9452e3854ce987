# The model of the panoptic config as a segmentor of mmseg.
_base_ = [
    "../_base_/models/hcformer_r18_small_semantic.py",
    "../_base_/datasets/shapes_semantic.py",
    "../_base_/schedules/shapes.py",
    "../_base_/mmseg_runtime.py",
]

model = dict(decode_head=dict(num_classes=10))
default_hooks = dict(checkpoint=_base_.checkpoints)
