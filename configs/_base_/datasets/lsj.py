# Large-scale jittering on crops of 1024x1024 (paper, Appendix D.1, as Mask2Former): the steps that
# the panoptic and the instance pipeline share, and the padding of the batch.
image_size = (1024, 1024)
lsj_load_image = dict(type="hcformer_mm.LoadImageFromFile", to_float32=True)
lsj_steps = [
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(
        type="RandomResize",
        scale=image_size,
        ratio_range=(0.1, 2.0),
        resize_type="hcformer_mm.Resize",
        keep_ratio=True,
    ),
    dict(
        type="mmdet.RandomCrop",
        crop_size=image_size,
        crop_type="absolute",
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
]
batch_augments = [
    dict(
        type="mmdet.BatchFixedSizePad",
        size=image_size,
        img_pad_value=0,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=True,
        seg_pad_value=255,
    )
]
# Views of test-time augmentation; the first is as without it.
tta_flips = [dict(type="mmdet.RandomFlip", prob=prob) for prob in (0.0, 1.0)]
