# HCFormer with a Swin-L for panoptic segmentation of COCO: 200 queries (paper, Appendix D.1).
_base_ = ["hcformer_panoptic.py", "parts/swin_l.py"]

model = dict(
    backbone=_base_.hc_backbone,
    panoptic_head=dict(in_channels=_base_.hc_channels, num_queries=200),
)
