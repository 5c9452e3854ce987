# The model of the panoptic config, trained on things only.
_base_ = [
    "../_base_/models/hcformer_r18_small.py",
    "../_base_/datasets/shapes_instance.py",
    "../_base_/schedules/shapes.py",
    "../_base_/default_runtime.py",
]

classes = dict(num_things_classes=6, num_stuff_classes=0)
model = dict(
    panoptic_head=classes,
    panoptic_fusion_head=classes,
    test_cfg=dict(panoptic_on=False, instance_on=True, semantic_on=False),
)
default_hooks = dict(checkpoint=_base_.checkpoints)
