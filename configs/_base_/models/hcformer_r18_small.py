# The small HCFormer for panoptic and instance segmentation.
_base_ = ["hcformer_panoptic.py", "parts/resnet18_small.py"]

model = dict(
    backbone=_base_.hc_backbone,
    panoptic_head=_base_.small_head,
    train_cfg=_base_.small_matching,
)
