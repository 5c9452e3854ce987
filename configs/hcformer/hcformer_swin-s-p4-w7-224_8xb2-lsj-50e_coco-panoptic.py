# HCFormer, Swin-S, COCO panoptic (paper, Table 1).
_base_ = [
    "../_base_/models/hcformer_swin-s.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../_base_/schedules/coco_50e.py",
]
