# A small HCFormer to train from scratch: ResNet-18, three decoder layers of width 128, 20 queries.
_base_ = "hcformer_r50.py"

attention = dict(embed_dims=128, num_heads=8, dropout=0.0, batch_first=True)
model = dict(
    backbone=dict(
        backbone=dict(depth=18, norm_cfg=dict(requires_grad=True), norm_eval=False, init_cfg=None)
    ),
    panoptic_head=dict(
        in_channels=512,
        feat_channels=128,
        out_channels=128,
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
    ),
    train_cfg=dict(num_points=2048),
)
