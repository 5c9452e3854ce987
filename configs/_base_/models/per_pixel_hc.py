# per_pixel.py with hierarchical clustering: backbone (output stride 32) and downsampling stay those
# of FCN-32s; the paper mentions DCNv2 for HCFormer, not for these models.
_base_ = ["per_pixel.py", "parts/clustering.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        **_base_.hc_clustering,
        downsampling="original",
        backbone=_base_.model.backbone,
    ),
    decode_head=dict(mask_space="logit", loss_scale_weight=0.1),
)
