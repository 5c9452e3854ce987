# FCN-32s with hierarchical clustering, on ADE20K.
_base_ = [
    "../_base_/models/hc_fcn32s.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/sgd_poly_160k.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
