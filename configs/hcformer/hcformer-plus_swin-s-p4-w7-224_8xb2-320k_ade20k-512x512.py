# HCFormer+, Swin-S, ADE20K (paper, Table 3).
_base_ = [
    "../_base_/models/hcformer-plus_swin-s_semantic.py",
    "../_base_/datasets/ade20k_multiscale_512x512.py",
    "../_base_/schedules/poly_320k.py",
]

model = dict(decode_head=dict(num_classes=_base_.num_classes))
