# mmdet's Panoptic FPN with a ResNet-18, to compare with HCFormer: the same data and schedule.
_base_ = [
    "../_base_/models/panoptic-fpn_r18_small.py",
    "../_base_/datasets/shapes_panoptic.py",
    "../_base_/schedules/shapes.py",
    "../_base_/default_runtime.py",
]

classes = dict(num_things_classes=6, num_stuff_classes=4)
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=6), mask_head=dict(num_classes=6)),
    semantic_head=classes,
    panoptic_fusion_head=classes,
)
default_hooks = dict(checkpoint=_base_.checkpoints)
# The model predicts panoptic segments alone.
val_evaluator = [_base_.val_evaluator[0]]
test_evaluator = val_evaluator
