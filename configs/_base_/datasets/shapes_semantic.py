# Shapes for semantic segmentation by MMSegmentation, at 256x192.
# Made by: python tools/dataset_converters/make_shapes.py
data_root = "data/shapes/"
backend_args = None
image_scale = (256, 192)

train_pipeline = [
    dict(type="hcformer_mm.LoadImageFromFile", backend_args=backend_args),
    dict(type="hcformer_mm.LoadSemanticAnnotations", backend_args=backend_args),
    dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="mmseg.PackSegInputs"),
]
# The ground truth keeps its original size: it is loaded after the resizing.
# The step that loads images has no scope, as the inferencers of mmdet and mmseg look it up so.
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=backend_args),
    dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True),
    dict(type="hcformer_mm.LoadSemanticAnnotations", backend_args=backend_args),
    dict(type="mmseg.PackSegInputs"),
]
tta_pipeline = [
    test_pipeline[0],  # loading
    dict(
        type="TestTimeAug",
        transforms=[
            [test_pipeline[1]],  # size
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            *([step] for step in test_pipeline[2:]),  # ground truth, which is not flipped; packing
        ],
    ),
]

dataset = dict(
    type="hcformer_mm.ShapesSemanticDataset",
    data_root=data_root,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="train", seg_map_path="semantic/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="val", seg_map_path="semantic/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
