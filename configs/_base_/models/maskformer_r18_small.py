# mmdet's MaskFormer of the size of the small HCFormer, with its own losses and matching.
# Its pixel decoder has three layers too. A leaf adds class_weight to loss_cls: a list, one for each
# class and for no object.
_base_ = ["hcformer_panoptic.py", "parts/resnet18_small.py"]

attention = _base_.small_attention
feedforward = dict(embed_dims=128, feedforward_channels=512, act_cfg=dict(type="ReLU"))
model = dict(
    backbone=_base_.hc_backbone.backbone,
    panoptic_head=dict(
        _delete_=True,
        type="mmdet.MaskFormerHead",
        in_channels=[64, 128, 256, 512],
        feat_channels=128,
        out_channels=128,
        num_queries=_base_.small_head.num_queries,
        pixel_decoder=dict(
            type="mmdet.TransformerEncoderPixelDecoder",
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=3, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feedforward)
            ),
            positional_encoding=dict(num_feats=64, normalize=True),
        ),
        positional_encoding=dict(num_feats=64, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feedforward),
        ),
        loss_cls=dict(type="mmdet.CrossEntropyLoss", reduction="mean", loss_weight=1.0),
        loss_mask=dict(
            type="mmdet.FocalLoss", use_sigmoid=True, reduction="mean", loss_weight=20.0
        ),
        loss_dice=dict(
            type="mmdet.DiceLoss",
            use_sigmoid=True,
            activate=True,
            reduction="mean",
            naive_dice=True,
            eps=1.0,
            loss_weight=1.0,
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type="mmdet.HungarianAssigner",
            match_costs=[
                dict(type="mmdet.ClassificationCost", weight=1.0),
                dict(type="mmdet.FocalLossCost", weight=20.0, binary_input=True),
                dict(type="mmdet.DiceCost", weight=1.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type="mmdet.MaskPseudoSampler"),
    ),
)
