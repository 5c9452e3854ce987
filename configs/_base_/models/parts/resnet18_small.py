# Parts of a small HCFormer to train from scratch: a ResNet-18 with trained normalization,
# three decoder layers of width 128 and 20 queries.
_base_ = "resnet50.py"

hc_backbone = dict(
    backbone=dict(depth=18, norm_cfg=dict(requires_grad=True), norm_eval=False, init_cfg=None)
)
hc_channels = 512

small_attention = dict(embed_dims=128, num_heads=8, dropout=0.0, batch_first=True)
small_head = dict(
    in_channels=hc_channels,
    feat_channels=128,
    out_channels=128,
    num_queries=20,
    transformer_decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=small_attention,
            cross_attn_cfg=small_attention,
            ffn_cfg=dict(embed_dims=128, feedforward_channels=512),
        ),
    ),
    positional_encoding=dict(num_feats=64),
)
small_matching = dict(num_points=2048)
