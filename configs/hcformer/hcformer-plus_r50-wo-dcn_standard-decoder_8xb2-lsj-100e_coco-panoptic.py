# The standard-decoder config without DCNv2 in the downsamplings (paper, Table V).
_base_ = "hcformer-plus_r50_standard-decoder_8xb2-lsj-100e_coco-panoptic.py"

model = dict(backbone=dict(downsampling="original"))
