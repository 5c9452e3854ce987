# HCFormer with an EfficientNet-Lite0 with weights of ImageNet, on nuclei in histology.
_base_ = "hcformer_r18_nuclei-panoptic.py"

model = dict(
    data_preprocessor=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0]),
    backbone=dict(
        downsampling="original",
        embed_channels=64,
        backbone=dict(
            _delete_=True,
            type="mmpretrain.TIMMBackbone",
            model_name="efficientnet_lite0",
            output_stride=16,
            init_cfg=dict(type="Pretrained", checkpoint="data/efficientnet_lite0.pth"),
        ),
    ),
    panoptic_head=dict(in_channels=1280),
)
