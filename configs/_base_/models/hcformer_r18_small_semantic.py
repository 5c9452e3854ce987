# The small HCFormer for semantic segmentation; decode_head.num_classes is the dataset's.
_base_ = ["hcformer_semantic.py", "parts/resnet18_small.py"]

model = dict(
    backbone=_base_.hc_backbone,
    decode_head=dict(**_base_.small_head, train_cfg=_base_.small_matching),
)
