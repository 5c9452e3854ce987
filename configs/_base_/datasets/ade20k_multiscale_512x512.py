# ADE20K with the augmentation of the mask transformers (paper, Appendix D.2): the shorter side is
# one of 0.5, 0.6, ... 2.0 times 512, and crops are not chosen by their classes. As in the
# release, Pillow resizes with antialiasing, and smaller images are padded with gray. Batches of 2
# on 8 GPUs.
_base_ = "ade20k.py"

base_side = 512
crop_size = (512, 512)
train_pipeline = [
    *_base_.train_pipeline[:2],  # loading
    dict(
        type="RandomChoiceResize",
        scales=[base_side * tenths // 10 for tenths in range(5, 21)],
        resize_type="hcformer_mm.ResizeShortestEdge",
        max_size=4 * base_side,
        backend="pillow",
    ),
    dict(type="mmseg.RandomCrop", crop_size=crop_size),
    *_base_.train_pipeline[4:-1],  # flip, colors as in SSD
    dict(type="Pad", size=crop_size[::-1], pad_val=dict(img=(128, 128, 128), seg=255)),
    _base_.train_pipeline[-1],  # packing
]
train_dataloader = dict(batch_size=2, num_workers=2, dataset=dict(pipeline=train_pipeline))

test_pipeline = _base_.test_pipeline
test_pipeline[1].update(backend="pillow")
# Scales are relative to the shorter side of the test, not to that of the original image.
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(
        type="Resize",
        scale=(7 * base_side, base_side * quarters // 4),
        keep_ratio=True,
        backend="pillow",
    )
    for quarters in range(2, 8)
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
