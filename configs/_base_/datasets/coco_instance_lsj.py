# COCO instances with large-scale jittering: mmdet's dataset with the panoptic pipeline, and
# boundary AP beside mask AP.
_base_ = ["mmdet::_base_/datasets/coco_instance.py", "lsj.py"]

data_root = "data/coco/"
backend_args = None

train_pipeline = [
    dict(type="hcformer_mm.LoadImageFromFile", backend_args=backend_args),
    dict(
        type="hcformer_mm.LoadInstanceAnnotations",
        with_bbox=True,
        with_mask=True,
        backend_args=backend_args,
    ),
    *_base_.lsj_steps,
    # Drop instances that the crop has cut away.
    dict(type="mmdet.FilterAnnotations", min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(type="mmdet.PackDetInputs"),
]
tta_pipeline = [
    _base_.test_pipeline[0],  # loading
    dict(
        type="TestTimeAug",
        transforms=[
            [_base_.test_pipeline[1]],  # size
            _base_.tta_flips,
            [dict(type="mmdet.PackDetInputs")],
        ],
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

truth = dict(ann_file=data_root + "annotations/instances_val2017.json", backend_args=backend_args)
val_evaluator = [
    dict(type="mmdet.CocoMetric", metric="segm", **truth),
    dict(type="hcformer_mm.CocoBoundaryMetric", **truth),
]
test_evaluator = val_evaluator
