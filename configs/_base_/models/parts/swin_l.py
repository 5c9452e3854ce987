# A Swin-L with clusters, pretrained on ImageNet-22K at 384 pixels: the differences from Swin-S.
_base_ = "swin_s.py"

hc_backbone = dict(
    backbone=dict(
        pretrain_img_size=384,
        embed_dims=192,
        num_heads=(6, 12, 24, 48),
        window_size=12,
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
            "swin_large_patch4_window12_384_22k.pth",
        ),
    )
)
hc_channels = 1536
