# A ConvNeXt-T of timm with clusters, and the channels of its last map. `pretrained=True` fetches
# the weights of DINOv3, under their own license, when the model is built.
_base_ = "clustering.py"

hc_backbone = dict(
    **_base_.hc_clustering,
    downsampling="original",
    backbone=dict(
        type="mmpretrain.TIMMBackbone",
        model_name="convnext_tiny.dinov3_lvd1689m",
        features_only=True,
        pretrained=False,
        drop_path_rate=0.1,
        out_indices=(3,),
    ),
)
hc_channels = 768
