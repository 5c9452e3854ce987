# mmdet's Mask2Former with a ResNet-18, to compare with HCFormer: the same data and schedule.
_base_ = [
    "../_base_/models/mask2former_r18_small.py",
    "../_base_/datasets/shapes_panoptic.py",
    "../_base_/schedules/shapes.py",
    "../_base_/default_runtime.py",
]

classes = dict(num_things_classes=6, num_stuff_classes=4)
model = dict(
    panoptic_head=dict(loss_cls=dict(class_weight=[1.0] * 10 + [0.1]), **classes),
    panoptic_fusion_head=classes,
)
default_hooks = dict(checkpoint=_base_.checkpoints)
