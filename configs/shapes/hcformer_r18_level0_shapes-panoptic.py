# HCFormer on Shapes that clusters no downsampling.
_base_ = "hcformer_r18_shapes-panoptic.py"

model = dict(backbone=dict(hierarchical_level=0))
