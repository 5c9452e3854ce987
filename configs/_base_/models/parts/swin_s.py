# A Swin-S with clusters, pretrained on ImageNet-1K, and the channels of its last map. The head
# reads the last map alone, so the norms of the others are left out.
_base_ = "clustering.py"

hc_backbone = dict(
    **_base_.hc_clustering,
    downsampling="original",
    backbone=dict(
        type="mmdet.SwinTransformer",
        embed_dims=96,
        depths=(2, 2, 18, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        drop_path_rate=0.3,
        out_indices=(3,),
        convert_weights=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
            "swin_small_patch4_window7_224.pth",
        ),
    ),
)
hc_channels = 768
