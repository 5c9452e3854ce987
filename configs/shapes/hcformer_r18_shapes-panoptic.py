# HCFormer with a ResNet-18, from scratch, on the embedded Shapes dataset: what `make demo` trains.
_base_ = [
    "../_base_/models/hcformer_r50.py",
    "../_base_/datasets/shapes_panoptic.py",
    "../_base_/schedules/shapes.py",
]

num_things_classes = 6
num_stuff_classes = 4
attention = dict(embed_dims=128, num_heads=8, dropout=0.0, batch_first=True)

model = dict(
    backbone=dict(
        backbone=dict(depth=18, norm_cfg=dict(requires_grad=True), norm_eval=False, init_cfg=None)
    ),
    panoptic_head=dict(
        in_channels=512,
        feat_channels=128,
        out_channels=128,
        num_things_classes=num_things_classes,
        num_stuff_classes=num_stuff_classes,
        num_queries=20,
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=128, feedforward_channels=512),
            ),
        ),
        positional_encoding=dict(num_feats=64),
        loss_cls=dict(class_weight=[1.0] * (num_things_classes + num_stuff_classes) + [0.1]),
    ),
    panoptic_fusion_head=dict(
        num_things_classes=num_things_classes, num_stuff_classes=num_stuff_classes
    ),
    train_cfg=dict(num_points=2048),
)
