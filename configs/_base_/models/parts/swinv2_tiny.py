# A Swin V2-T with clusters, pretrained on ImageNet-1K, and the channels of its last map. The head
# reads the last map alone, so the norms of the others are left out.
_base_ = "clustering.py"

hc_backbone = dict(
    **_base_.hc_clustering,
    downsampling="original",
    backbone=dict(
        type="mmpretrain.SwinTransformerV2",
        arch="tiny",
        img_size=256,
        window_size=[16, 16, 16, 8],
        pad_small_map=True,
        drop_path_rate=0.2,
        out_indices=(3,),
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://mmassets.onedl.ai/mmclassification/v0/swin-v2/"
            "swinv2-tiny-w16_3rdparty_in1k-256px_20220803-9651cdd7.pth",
            prefix="backbone.",
        ),
    ),
)
hc_channels = 768
