# HCFormer in MMSegmentation's EncoderDecoder, for semantic segmentation. A backbone, the channels
# that the head reads and the number of classes complete it: see hcformer_r50_semantic.py.
_base_ = "parts/head.py"

model = dict(
    type="mmseg.EncoderDecoder",
    data_preprocessor=dict(
        type="mmseg.SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
    ),
    decode_head=dict(
        type="hcformer_mm.HCFormerSegHead", **_base_.hc_head, train_cfg=_base_.hc_matching
    ),
    # mmseg requires both; the head's settings are in the head.
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
    init_cfg=None,
)
