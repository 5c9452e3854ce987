# The Hiera-B+ of SAM 2 from timm with clusters, and the channels of its last map.
# `pretrained=True` fetches its weights when the model is built.
_base_ = "clustering.py"

hc_backbone = dict(
    **_base_.hc_clustering,
    downsampling="original",
    backbone=dict(
        type="mmpretrain.TIMMBackbone",
        model_name="sam2_hiera_base_plus.fb_r896_2pt1",
        features_only=True,
        pretrained=False,
        drop_path_rate=0.1,
        out_indices=(3,),
    ),
)
hc_channels = 896
