# ADE20K as MMSegmentation lays it out and augments it: the shorter side 512 times 0.5 to 2.0, crops
# of 512x512; batches of 16 on four GPUs. In the test the shorter side is 512.
data_root = "data/ade/ADEChallengeData2016"
backend_args = None
num_classes = 150
crop_size = (512, 512)
scale = (2048, 512)

train_pipeline = [
    dict(type="hcformer_mm.LoadImageFromFile", backend_args=backend_args),
    dict(
        type="hcformer_mm.LoadSemanticAnnotations",
        reduce_zero_label=True,
        backend_args=backend_args,
    ),
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
    dict(
        type="hcformer_mm.LoadSemanticAnnotations",
        reduce_zero_label=True,
        backend_args=backend_args,
    ),
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
            [dict(type="hcformer_mm.LoadSemanticAnnotations", reduce_zero_label=True)],
            [dict(type="mmseg.PackSegInputs")],
        ],
    ),
]

dataset = dict(type="mmseg.ADE20KDataset", data_root=data_root)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
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
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
