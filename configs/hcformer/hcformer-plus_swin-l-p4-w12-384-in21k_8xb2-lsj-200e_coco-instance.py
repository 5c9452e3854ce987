# HCFormer+, Swin-L, COCO instances (paper, Table 2).
_base_ = [
    "../_base_/models/hcformer-plus_swin-l.py",
    "../_base_/models/parts/instance.py",
    "../_base_/datasets/coco_instance_lsj.py",
    "../_base_/schedules/coco_200e.py",
]

model = _base_.things_alone
