# HCFormer on Shapes that clusters the two deepest downsamplings.
_base_ = "hcformer_r18_shapes-panoptic.py"

model = dict(backbone=dict(hierarchical_level=2))
