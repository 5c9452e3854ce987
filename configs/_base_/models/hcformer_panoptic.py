# HCFormer in MMDetection's MaskFormer, for panoptic and instance segmentation, with the classes of
# COCO. A backbone and the channels that the head reads complete it: see hcformer_r50.py.
_base_ = "parts/head.py"

classes = dict(num_things_classes=80, num_stuff_classes=53)

model = dict(
    type="mmdet.MaskFormer",
    data_preprocessor=dict(
        type="mmdet.DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=True,
        seg_pad_value=255,
    ),
    panoptic_head=dict(type="hcformer_mm.HCFormerHead", **_base_.hc_head, **classes),
    panoptic_fusion_head=dict(
        type="hcformer_mm.HCFormerFusionHead", **classes, loss_panoptic=None, init_cfg=None
    ),
    train_cfg=_base_.hc_matching,
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
