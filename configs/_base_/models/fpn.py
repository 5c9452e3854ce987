# Semantic FPN as MMSegmentation carries it: FCN-32s with a simple pixel decoder. The auxiliary head
# reads the stage that those of the other models read, behind the neck.
_base_ = "per_pixel.py"

model = dict(
    neck=dict(type="mmseg.FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4),
    decode_head=dict(
        type="mmseg.FPNHead",
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
    ),
    auxiliary_head=dict(in_channels=256),
)
