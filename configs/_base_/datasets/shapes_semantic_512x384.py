# Shapes at twice the size, trained on crops of 256x192: an iteration costs no more, but a thing
# covers four times as many cells of stride 32.
_base_ = "shapes_semantic.py"

image_scale = (512, 384)
crop_size = (192, 256)
train_pipeline = [
    *_base_.train_pipeline[:2],  # loading
    dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True),
    dict(type="mmseg.RandomCrop", crop_size=crop_size),
    *_base_.train_pipeline[3:],  # flip, packing
]
test_pipeline = [
    _base_.test_pipeline[0],  # loading
    dict(type="hcformer_mm.Resize", scale=image_scale, keep_ratio=True),
    *_base_.test_pipeline[2:],  # ground truth, packing
]
tta_pipeline = [
    test_pipeline[0],  # loading
    dict(
        type="TestTimeAug",
        transforms=[[test_pipeline[1]], *_base_.tta_pipeline[1].transforms[1:]],
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
