# HCFormer+, Swin-S, COCO panoptic (paper, Table 1).
_base_ = [
    "../_base_/models/hcformer-plus_swin-s.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../_base_/schedules/coco_100e.py",
]
