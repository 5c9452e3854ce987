# HCFormer, Swin-S, ADE20K (paper, Table 3).
_base_ = [
    "../_base_/models/hcformer_swin-s_semantic.py",
    "../_base_/datasets/ade20k_multiscale_512x512.py",
    "../_base_/schedules/poly_160k.py",
]

model = dict(decode_head=dict(num_classes=_base_.num_classes))
