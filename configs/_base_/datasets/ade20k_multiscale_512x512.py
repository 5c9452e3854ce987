# ADE20K with the augmentation of the mask transformers (paper, Appendix D.2): the shorter side is
# one of 0.5, 0.6, ... 2.0 times 512, and crops are not chosen by their classes. Batches of 2 on 8
# GPUs.
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
    ),
    dict(type="mmseg.RandomCrop", crop_size=crop_size),
    *_base_.train_pipeline[4:],  # flip, colors as in SSD, packing
]
train_dataloader = dict(batch_size=2, num_workers=2, dataset=dict(pipeline=train_pipeline))
