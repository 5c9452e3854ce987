# mmdet's Mask2Former with a ResNet-18, to compare with HCFormer: the same data and schedule.
_base_ = [
    "../_base_/models/mask2former_r18_small.py",
    "../_base_/datasets/nuclei_panoptic.py",
    "../_base_/schedules/nuclei.py",
    "../_base_/default_runtime.py",
]

classes = dict(num_things_classes=3, num_stuff_classes=2)
model = dict(
    backbone=dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)),
    panoptic_head=dict(
        in_channels=[64, 128, 256],
        strides=[4, 8, 16],
        num_transformer_feat_level=2,
        pixel_decoder=dict(encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=2)))),
        num_queries=40,
        loss_cls=dict(class_weight=[1.0] * 5 + [0.1]),
        **classes,
    ),
    panoptic_fusion_head=classes,
    test_cfg=dict(object_mask_thr=0.5),
)
default_hooks = dict(checkpoint=_base_.checkpoints)
