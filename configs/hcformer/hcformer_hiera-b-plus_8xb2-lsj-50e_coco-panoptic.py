# HCFormer with the Hiera-B+ of SAM 2: COCO panoptic. It needs timm.
_base_ = [
    "../_base_/models/hcformer_hiera-b-plus.py",
    "../_base_/datasets/coco_panoptic_lsj.py",
    "../_base_/schedules/coco_50e.py",
]
