# PSPNet at output stride 32 with hierarchical clustering, on Cityscapes.
_base_ = [
    "../_base_/models/hc_pspnet.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/schedules/sgd_poly_80k.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
