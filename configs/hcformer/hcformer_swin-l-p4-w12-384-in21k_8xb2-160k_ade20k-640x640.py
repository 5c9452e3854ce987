# HCFormer, Swin-L, ADE20K (paper, Table 3).
_base_ = [
    "../_base_/models/hcformer_swin-l_semantic.py",
    "../_base_/datasets/ade20k_multiscale_640x640.py",
    "../_base_/schedules/poly_160k.py",
]

model = dict(decode_head=dict(num_classes=_base_.num_classes))
