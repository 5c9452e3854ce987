# Nuclei in histology for panoptic and instance segmentation, on tissue and glass.
# Made by: python tools/dataset_converters/nuclei.py WHEEL
_base_ = "shapes_panoptic.py"

data_root = "data/nuclei/"
things = ("neoplastic", "inflammatory", "connective")
stuff = ("tissue", "glass")
metainfo = dict(
    classes=(*things, *stuff),
    thing_classes=things,
    stuff_classes=stuff,
    palette=[(224, 64, 64), (48, 128, 224), (48, 176, 96), (232, 200, 224), (240, 240, 240)],
)
image_scale = (128, 128)

load, annotations, _, flip, pack = _base_.train_pipeline
resize = dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True)
train_pipeline = [
    load,
    annotations,
    resize,
    dict(type="mmdet.RandomFlip", prob=[0.25, 0.25], direction=["horizontal", "vertical"]),
    # A quarter turn, in either direction.
    dict(type="mmdet.Rotate", prob=0.5, level=10, min_mag=90.0, max_mag=90.0),
    dict(
        type="mmdet.PhotoMetricDistortion",
        brightness_delta=24,
        contrast_range=(0.8, 1.2),
        saturation_range=(0.8, 1.2),
        hue_delta=9,
    ),
    pack,
]
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[2:]]

dataset = dict(type="mmdet.CocoPanopticDataset", data_root=data_root, metainfo=metainfo)
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader

instances = data_root + "annotations/instances_val.json"
val_evaluator = [
    dict(
        type="hcformer_mm.CocoPanopticMetric",
        ann_file=data_root + "annotations/panoptic_val.json",
        seg_prefix=data_root + "annotations/panoptic_val/",
    ),
    dict(
        type="mmdet.CocoMetric",
        ann_file=data_root + "annotations/instances_val.json",
        metric="segm",
    ),
    dict(
        type="hcformer_mm.CocoBoundaryMetric", ann_file=data_root + "annotations/instances_val.json"
    ),
    dict(type="mmdet.SemSegMetric", iou_metrics=["mIoU"], prefix="sem_seg"),
]
test_evaluator = val_evaluator
