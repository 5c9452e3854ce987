# MobileNetV4-Conv-S of timm with clusters, and the small head: parts for CPUs and phones. Its
# downsamplings are depthwise, so they are not deformable. `pretrained=True` fetches weights of
# ImageNet when the model is built.
_base_ = "resnet18_small.py"

hc_backbone = dict(
    downsampling="original",
    embed_channels=64,
    taps=[f"timm_model.blocks.{stage}.0" for stage in (1, 2, 3)],
    backbone=dict(
        _delete_=True,
        type="mmpretrain.TIMMBackbone",
        model_name="mobilenetv4_conv_small",
        features_only=True,
        pretrained=False,
    ),
)
small_head = dict(in_channels=960, num_queries=100)
