# mmdet's Mask2Former of the size of the small HCFormer, with the same losses and matching.
# Its pixel decoder has three layers too. A leaf adds class_weight to loss_cls: a list, one for each
# class and for no object.
_base_ = ["hcformer_panoptic.py", "parts/resnet18_small.py"]

attention = _base_.small_attention
model = dict(
    type="mmdet.Mask2Former",
    backbone=_base_.hc_backbone.backbone,
    panoptic_head=dict(
        _delete_=True,
        type="mmdet.Mask2FormerHead",
        in_channels=[64, 128, 256, 512],
        strides=[4, 8, 16, 32],
        feat_channels=128,
        out_channels=128,
        num_queries=_base_.small_head.num_queries,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder",
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=3,
                layer_cfg=dict(
                    self_attn_cfg=dict(num_levels=3, num_points=4, **attention),
                    ffn_cfg=dict(embed_dims=128, feedforward_channels=512),
                ),
            ),
            positional_encoding=dict(num_feats=64, normalize=True),
        ),
        positional_encoding=dict(num_feats=64, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=128, feedforward_channels=512, act_cfg=dict(type="ReLU")),
            ),
            init_cfg=None,
        ),
        loss_cls=_base_.hc_head.loss_cls,
        loss_mask=_base_.hc_head.loss_mask,
        loss_dice=_base_.hc_head.loss_dice,
    ),
    train_cfg=_base_.small_matching,
)
