# mmdet's Panoptic FPN of the size of the small HCFormer: width 128, three convolutions for a mask.
# It samples as many regions as a few small objects need. A leaf adds the classes.
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "parts/resnet18_small.py"]

width = 128
model = dict(
    type="mmdet.PanopticFPN",
    data_preprocessor=dict(mask_pad_value=0, pad_seg=True, seg_pad_value=255),
    backbone=dict(_delete_=True, **_base_.hc_backbone.backbone),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=width),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[4]),  # small objects
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(num_convs=3, in_channels=width, conv_out_channels=width),
    ),
    semantic_head=dict(
        type="mmdet.PanopticFPNHead",
        in_channels=width,
        inner_channels=width,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type="GN", num_groups=32, requires_grad=True),
        loss_seg=dict(type="mmdet.CrossEntropyLoss", ignore_index=255, loss_weight=0.5),
    ),
    panoptic_fusion_head=dict(type="mmdet.HeuristicFusionHead"),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=250), rcnn=dict(sampler=dict(num=64))
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=250, max_per_img=250),
        rcnn=dict(score_thr=0.5, nms=dict(type="nms", iou_threshold=0.5, class_agnostic=True)),
        panoptic=dict(mask_overlap=0.5, stuff_area_limit=1024),
    ),
)
