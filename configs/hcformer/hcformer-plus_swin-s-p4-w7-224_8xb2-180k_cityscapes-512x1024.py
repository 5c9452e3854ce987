# HCFormer+, Swin-S, Cityscapes (paper, Table 4).
_base_ = [
    "../_base_/models/hcformer-plus_swin-s_semantic.py",
    "../_base_/datasets/cityscapes_multiscale_512x1024.py",
    "../_base_/schedules/poly_180k.py",
]

model = dict(decode_head=dict(num_classes=_base_.num_classes))
