# COCO panoptic with large-scale jittering: mmdet's dataset with another training pipeline and more
# evaluators.
_base_ = ["mmdet::_base_/datasets/coco_panoptic.py", "lsj.py"]

data_root = "data/coco/"
backend_args = None

train_pipeline = [
    dict(type="hcformer_mm.LoadImageFromFile", backend_args=backend_args),
    dict(
        type="hcformer_mm.LoadPanopticAnnotations",
        with_bbox=True,
        with_mask=True,
        with_seg=True,
        backend_args=backend_args,
    ),
    *_base_.lsj_steps,
    # Drop things that the crop has cut away; an image without things is kept for its stuff.
    dict(type="mmdet.FilterAnnotations", by_box=False, by_mask=True, keep_empty=False),
    dict(type="mmdet.PackDetInputs"),
]
tta_pipeline = [
    _base_.test_pipeline[0],  # loading
    dict(
        type="TestTimeAug",
        transforms=[
            [_base_.test_pipeline[1]],  # size
            _base_.tta_flips,
            [_base_.test_pipeline[2]],  # ground truth, which is not flipped
            [dict(type="mmdet.PackDetInputs")],
        ],
    ),
]
# Images without things are kept: they have stuff.
train_dataloader = dict(
    dataset=dict(pipeline=train_pipeline, filter_cfg=dict(filter_empty_gt=False))
)

# Panoptic quality, and the AP and mIoU of the same predictions (AP_pan^Th and mIoU_pan).
val_evaluator = [
    dict(
        type="hcformer_mm.CocoPanopticMetric",
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
