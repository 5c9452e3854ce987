# HCFormer on Shapes that clusters every downsampling but the first.
_base_ = "hcformer_r18_shapes-panoptic.py"

model = dict(backbone=dict(hierarchical_level=4))
