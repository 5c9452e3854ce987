# The same with the downsampling of the ResNet as it is, without DCNv2 (paper, Table V).
_base_ = "hcformer-plus_r50_standard-decoder_8xb2-lsj-100e_coco-panoptic.py"

model = dict(backbone=dict(downsampling="original"))
