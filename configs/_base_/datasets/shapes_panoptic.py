# Shapes for panoptic, instance and semantic segmentation in one pass, at 256x192.
# Made by: python tools/dataset_converters/make_shapes.py
dataset_type = "hcformer_mm.ShapesPanopticDataset"
data_root = "data/shapes/"
backend_args = None
image_scale = (256, 192)

train_pipeline = [
    dict(type="hcformer_mm.LoadImageFromFile", backend_args=backend_args),
    dict(type="hcformer_mm.LoadPanopticAnnotations", backend_args=backend_args),
    dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True),
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(type="mmdet.PackDetInputs"),
]
# The metrics read the ground truth of panoptic and instance segmentation from files; only the
# semantic map, at the original size (hence after Resize), travels with the image.
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=backend_args),
    dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True),
    dict(
        type="hcformer_mm.LoadPanopticAnnotations",
        with_bbox=False,
        with_label=False,
        with_mask=False,
        with_seg=True,
        backend_args=backend_args,
    ),
    dict(
        type="mmdet.PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
tta_pipeline = [
    test_pipeline[0],  # loading
    dict(
        type="TestTimeAug",
        transforms=[
            [test_pipeline[1]],  # size
            [dict(type="mmdet.RandomFlip", prob=prob) for prob in (0.0, 1.0)],
            [test_pipeline[2]],  # ground truth, which is not flipped
            [dict(type="mmdet.PackDetInputs")],
        ],
    ),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/panoptic_train.json",
        data_prefix=dict(img="train/", seg="annotations/panoptic_train/"),
        pipeline=train_pipeline,
        backend_args=backend_args,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/panoptic_val.json",
        data_prefix=dict(img="val/", seg="annotations/panoptic_val/"),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(
        type="hcformer_mm.CocoPanopticMetric",
        ann_file=data_root + "annotations/panoptic_val.json",
        seg_prefix=data_root + "annotations/panoptic_val/",
        backend_args=backend_args,
    ),
    dict(
        type="mmdet.CocoMetric",
        ann_file=data_root + "annotations/instances_val.json",
        metric="segm",
        backend_args=backend_args,
    ),
    dict(type="mmdet.SemSegMetric", iou_metrics=["mIoU"], prefix="sem_seg"),
]
test_evaluator = val_evaluator
