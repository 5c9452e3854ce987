# As for 512 pixels, with a shorter side of 640 in training and in the test.
_base_ = "ade20k_multiscale_512x512.py"

base_side = 640
crop_size = (640, 640)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(
    scales=[base_side * tenths // 10 for tenths in range(5, 21)], max_size=4 * base_side
)
train_pipeline[3].update(crop_size=crop_size)
train_pipeline[-2].update(size=crop_size)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

scale = (4 * base_side, base_side)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=scale)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    step | dict(scale=tuple(side * base_side // 512 for side in step["scale"]))
    for step in tta_pipeline[1].transforms[0]
]
