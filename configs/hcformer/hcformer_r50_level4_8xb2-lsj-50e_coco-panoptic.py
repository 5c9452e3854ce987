# HCFormer, ResNet-50, COCO panoptic, clusters down to stride 2.
_base_ = "hcformer_r50_8xb2-lsj-50e_coco-panoptic.py"

model = dict(backbone=dict(hierarchical_level=4))
