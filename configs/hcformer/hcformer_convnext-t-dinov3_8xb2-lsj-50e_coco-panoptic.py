# HCFormer with a ConvNeXt-T of DINOv3: COCO panoptic. It needs timm.
_base_ = [
    "../_base_/models/hcformer_convnext-t-dinov3.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../_base_/schedules/coco_50e.py",
]
