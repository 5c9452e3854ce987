# HCFormer, ResNet-50, Cityscapes (paper, Table 4).
_base_ = [
    "../_base_/models/hcformer_r50_semantic.py",
    "../_base_/datasets/cityscapes_multiscale_512x1024.py",
    "../_base_/schedules/poly_90k.py",
]

model = dict(decode_head=dict(num_classes=_base_.num_classes))
