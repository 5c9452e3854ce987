# HCFormer+, ResNet-50, with the decoder of DETR and MaskFormer, COCO panoptic (paper, Table V).
_base_ = "hcformer-plus_r50_8xb2-lsj-100e_coco-panoptic.py"

model = dict(panoptic_head=dict(decoder="standard"))
