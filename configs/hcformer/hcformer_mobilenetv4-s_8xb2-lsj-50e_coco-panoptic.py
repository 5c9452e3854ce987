# HCFormer for CPUs and phones: MobileNetV4-Conv-S, COCO panoptic. It needs timm.
_base_ = [
    "../_base_/models/hcformer_mobilenetv4-s.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../_base_/schedules/coco_50e.py",
]
