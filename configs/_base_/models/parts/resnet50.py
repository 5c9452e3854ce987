# A ResNet-50 with clusters, and the channels of its last map. Its normalization is frozen.
_base_ = "clustering.py"

hc_backbone = dict(
    **_base_.hc_clustering,
    downsampling="deform",
    backbone=dict(
        type="mmdet.ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
)
hc_channels = 2048
