# The neck of HCFormer+: a transformer encoder on the last map, whose channels are its in_channels.
hc_encoder = dict(
    type="hcformer_mm.TransformerEncoderNeck",
    out_channels=256,
    encoder=dict(
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.1, batch_first=True),
            ffn_cfg=dict(
                embed_dims=256,
                feedforward_channels=2048,
                num_fcs=2,
                ffn_drop=0.1,
                act_cfg=dict(type="ReLU", inplace=True),
            ),
        ),
    ),
    positional_encoding=dict(num_feats=128, normalize=True),
)
