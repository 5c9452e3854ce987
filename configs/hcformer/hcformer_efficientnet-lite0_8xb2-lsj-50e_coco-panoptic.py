# HCFormer with an EfficientNet-Lite0 and the small head: COCO panoptic. It needs timm.
_base_ = [
    "../_base_/models/hcformer_efficientnet-lite0.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../_base_/schedules/coco_50e.py",
]
