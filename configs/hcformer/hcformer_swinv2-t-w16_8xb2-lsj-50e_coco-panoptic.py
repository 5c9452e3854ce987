# HCFormer with a Swin V2-T: COCO panoptic.
_base_ = [
    "../_base_/models/hcformer_swinv2-t-w16.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../_base_/schedules/coco_50e.py",
]
