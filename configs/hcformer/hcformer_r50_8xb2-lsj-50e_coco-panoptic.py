# HCFormer, ResNet-50, COCO panoptic (paper, Table 1): 8 GPUs with 2 images each.
_base_ = [
    "../_base_/models/hcformer_r50.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../_base_/schedules/coco_50e.py",
]
