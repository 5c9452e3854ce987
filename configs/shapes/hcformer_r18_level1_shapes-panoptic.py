# HCFormer on Shapes that clusters the deepest downsampling only.
_base_ = "hcformer_r18_shapes-panoptic.py"

model = dict(backbone=dict(hierarchical_level=1))
