# Large-scale jittering on crops of 1024x1024 (paper, Appendix D.1, as Mask2Former): the steps that
# the panoptic and the instance pipeline share. As in the release, Pillow resizes with antialiasing,
# and smaller images are padded with gray.
image_size = (1024, 1024)
lsj_steps = [
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(
        type="RandomResize",
        scale=image_size,
        ratio_range=(0.1, 2.0),
        resize_type="hcformer_mm.Resize",
        keep_ratio=True,
        backend="pillow",
    ),
    dict(
        type="mmdet.RandomCrop",
        crop_size=image_size,
        crop_type="absolute",
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="mmdet.Pad", size=image_size, pad_val=dict(img=(128, 128, 128), masks=0, seg=255)),
]
# Views of test-time augmentation; the first is as without it.
tta_flips = [dict(type="mmdet.RandomFlip", prob=prob) for prob in (0.0, 1.0)]
