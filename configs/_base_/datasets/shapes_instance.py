# Shapes for instance segmentation: the things alone, at 256x192.
# Made by: python tools/dataset_converters/make_shapes.py
dataset_type = "hcformer_mm.ShapesInstanceDataset"
data_root = "data/shapes/"
backend_args = None
image_scale = (256, 192)

train_pipeline = [
    dict(type="hcformer_mm.LoadImageFromFile", backend_args=backend_args),
    dict(type="hcformer_mm.LoadInstanceAnnotations", with_bbox=True, with_mask=True),
    dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True),
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(type="mmdet.PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=backend_args),
    dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True),
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
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
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
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type="mmdet.CocoMetric",
    ann_file=data_root + "annotations/instances_val.json",
    metric="segm",
    backend_args=backend_args,
)
test_evaluator = val_evaluator
