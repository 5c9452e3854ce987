# HCFormer with a ResNet-18, from scratch, on the embedded Shapes dataset (`make demo`).
_base_ = [
    "../_base_/models/hcformer_r18_small.py",
    "../_base_/datasets/shapes_panoptic.py",
    "../_base_/schedules/shapes.py",
    "../_base_/default_runtime.py",
]

classes = dict(num_things_classes=6, num_stuff_classes=4)
model = dict(panoptic_head=classes, panoptic_fusion_head=classes)
default_hooks = dict(checkpoint=_base_.checkpoints)
