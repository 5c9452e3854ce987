# COCO panoptic with large-scale jittering on 1024x1024 crops (paper, Appendix D.1, as Mask2Former):
# the host's dataset with another training pipeline and with more evaluators.
_base_ = "mmdet::_base_/datasets/coco_panoptic.py"

data_root = "data/coco/"
image_size = (1024, 1024)
backend_args = None

batch_augments = [
    dict(
        type="mmdet.BatchFixedSizePad",
        size=image_size,
        img_pad_value=0,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=True,
        seg_pad_value=255,
    )
]
train_pipeline = [
    dict(type="LoadImageFromFile", to_float32=True, backend_args=backend_args),
    dict(
        type="mmdet.LoadPanopticAnnotations",
        with_bbox=True,
        with_mask=True,
        with_seg=True,
        backend_args=backend_args,
    ),
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(
        type="RandomResize",
        scale=image_size,
        ratio_range=(0.1, 2.0),
        resize_type="mmdet.Resize",
        keep_ratio=True,
    ),
    dict(
        type="mmdet.RandomCrop",
        crop_size=image_size,
        crop_type="absolute",
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="mmdet.PackDetInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

val_evaluator = [
    dict(
        type="mmdet.CocoPanopticMetric",
        ann_file=data_root + "annotations/panoptic_val2017.json",
        seg_prefix=data_root + "annotations/panoptic_val2017/",
        backend_args=backend_args,
    ),
    dict(
        type="mmdet.CocoMetric",
        ann_file=data_root + "annotations/instances_val2017.json",
        metric="segm",
        backend_args=backend_args,
    ),
    dict(type="mmdet.SemSegMetric", iou_metrics=["mIoU"], prefix="sem_seg"),
]
test_evaluator = val_evaluator
