# HCFormer with a ResNet-50 for panoptic segmentation of COCO (paper, Secs. 2 and 4.1). What another
# dataset changes: the numbers of classes, and with them the class weights.
num_things_classes = 80
num_stuff_classes = 53
num_classes = num_things_classes + num_stuff_classes


data_preprocessor = dict(
    type="mmdet.DetDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_size_divisor=32,
    pad_mask=True,
    mask_pad_value=0,
    pad_seg=True,
    seg_pad_value=255,
)

attention = dict(embed_dims=256, num_heads=8, dropout=0.0, batch_first=True)

model = dict(
    type="mmdet.MaskFormer",
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type="hcformer_mm.HCBackbone",
        hierarchical_level=3,
        embed_channels=128,
        init_scale=0.1,
        downsampling="deform",
        backbone=dict(
            type="mmdet.ResNet",
            depth=50,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            frozen_stages=-1,
            norm_cfg=dict(type="BN", requires_grad=False),
            norm_eval=True,
            style="pytorch",
            init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
        ),
    ),
    panoptic_head=dict(
        type="hcformer_mm.HCFormerHead",
        in_channels=2048,
        feat_channels=256,
        out_channels=256,
        num_things_classes=num_things_classes,
        num_stuff_classes=num_stuff_classes,
        num_queries=100,
        mask_space="logit",
        transformer_decoder=dict(
            num_layers=8,
            return_intermediate=True,
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
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=2.0,
            reduction="mean",
            class_weight=[1.0] * num_classes + [0.1],
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
    ),
    panoptic_fusion_head=dict(
        type="hcformer_mm.HCFormerFusionHead",
        num_things_classes=num_things_classes,
        num_stuff_classes=num_stuff_classes,
        loss_panoptic=None,
        init_cfg=None,
    ),
    train_cfg=dict(
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
    ),
    test_cfg=dict(
        panoptic_on=True,
        instance_on=True,
        semantic_on=True,
        max_per_image=100,
        object_mask_thr=0.8,
        iou_thr=0.8,
        filter_low_score=True,
    ),
    init_cfg=None,
)
