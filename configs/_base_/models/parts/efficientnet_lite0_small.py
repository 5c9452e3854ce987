# EfficientNet-Lite0 of timm with clusters, and the small head: parts for CPUs and phones. Its
# downsamplings are depthwise, so they are not deformable. `pretrained=True` fetches weights of
# ImageNet when the model is built. The head reads the map after the network's last convolution,
# BatchNorm and ReLU6: the map of the last block, which nothing normalizes, learns badly.
_base_ = "resnet18_small.py"

hc_backbone = dict(
    downsampling="original",
    embed_channels=64,
    backbone=dict(
        _delete_=True,
        type="mmpretrain.TIMMBackbone",
        model_name="efficientnet_lite0",
        pretrained=False,
    ),
)
small_head = dict(in_channels=1280, num_queries=100)
