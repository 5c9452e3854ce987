# The head of HCFormer (paper, Secs. 2.3 and 4.1) and its matching, for every task; the models add
# in_channels and the number of classes.
attention = dict(embed_dims=256, num_heads=8, dropout=0.0, batch_first=True)

hc_head = dict(
    feat_channels=256,
    out_channels=256,
    num_queries=100,
    decoder="masked",
    mask_space="logit",
    transformer_decoder=dict(
        num_layers=8,
        layer_cfg=dict(
            self_attn_cfg=attention,
            cross_attn_cfg=attention,
            ffn_cfg=dict(
                embed_dims=256,
                feedforward_channels=2048,
                num_fcs=2,
                ffn_drop=0.0,
                act_cfg=dict(type="ReLU", inplace=True),
            ),
        ),
        init_cfg=None,
    ),
    positional_encoding=dict(num_feats=128, normalize=True),
    no_object_weight=0.1,
    loss_cls=dict(
        type="mmdet.CrossEntropyLoss", use_sigmoid=False, loss_weight=2.0, reduction="mean"
    ),
    loss_mask=dict(
        type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=5.0
    ),
    loss_dice=dict(
        type="mmdet.DiceLoss",
        use_sigmoid=True,
        activate=True,
        reduction="mean",
        naive_dice=True,
        eps=1.0,
        loss_weight=5.0,
    ),
    loss_scale_weight=0.1,
)

hc_matching = dict(
    num_points=12544,
    oversample_ratio=3.0,
    importance_sample_ratio=0.75,
    assigner=dict(
        type="mmdet.HungarianAssigner",
        match_costs=[
            dict(type="mmdet.ClassificationCost", weight=2.0),
            dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
            dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
        ],
    ),
    sampler=dict(type="mmdet.MaskPseudoSampler"),
)
