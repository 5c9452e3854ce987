# HCFormer+, Swin-S, COCO instances (released, not in the paper).
_base_ = [
    "../_base_/models/hcformer-plus_swin-s.py",
    "../_base_/models/parts/instance.py",
    "../_base_/datasets/coco_instance_lsj.py",
    "../_base_/schedules/coco_100e.py",
]

model = _base_.things_alone
