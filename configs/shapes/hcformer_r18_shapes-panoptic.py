# HCFormer with a ResNet-18, from scratch, on the embedded Shapes dataset: what `make demo` trains.
_base_ = [
    "../_base_/models/hcformer_r18_small.py",
    "../_base_/datasets/shapes_panoptic.py",
    "../_base_/schedules/shapes.py",
]

num_things_classes = 6
num_stuff_classes = 4
model = dict(
    panoptic_head=dict(
        num_things_classes=num_things_classes,
        num_stuff_classes=num_stuff_classes,
        loss_cls=dict(class_weight=[1.0] * (num_things_classes + num_stuff_classes) + [0.1]),
    ),
    panoptic_fusion_head=dict(
        num_things_classes=num_things_classes, num_stuff_classes=num_stuff_classes
    ),
)
