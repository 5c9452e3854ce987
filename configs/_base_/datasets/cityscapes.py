# Cityscapes as MMSegmentation lays it out and augments it: the shorter side 1024 times 0.5 to 2.0,
# crops of 512x1024; batches of 8 on four GPUs. The test is on whole images of 1024x2048.
data_root = "data/cityscapes/"
backend_args = None
num_classes = 19
crop_size = (512, 1024)
scale = (2048, 1024)

train_pipeline = [
    dict(type="hcformer_mm.LoadImageFromFile", backend_args=backend_args),
    dict(type="hcformer_mm.LoadSemanticAnnotations", backend_args=backend_args),
    dict(
        type="RandomResize",
        scale=scale,
        ratio_range=(0.5, 2.0),
        resize_type="hcformer_mm.Resize",
        keep_ratio=True,
    ),
    dict(type="mmseg.RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="mmseg.PhotoMetricDistortion"),
    dict(type="mmseg.PackSegInputs"),
]
# The ground truth keeps its original size: it is loaded after the resizing.
# The step that loads images has no scope, as the inferencers of mmdet and mmseg look it up so.
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=backend_args),
    dict(type="hcformer_mm.Resize", scale=scale, keep_ratio=True),
    dict(type="hcformer_mm.LoadSemanticAnnotations", backend_args=backend_args),
    dict(type="mmseg.PackSegInputs"),
]
# Scales are relative to the original image, as in MMSegmentation.
tta_pipeline = [
    dict(type="LoadImageFromFile", backend_args=backend_args),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale_factor=ratio, keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="hcformer_mm.LoadSemanticAnnotations")],
            [dict(type="mmseg.PackSegInputs")],
        ],
    ),
]

dataset = dict(type="mmseg.CityscapesDataset", data_root=data_root)
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
