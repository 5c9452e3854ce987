# HCFormer on Shapes that clusters every downsampling, down to the pixels of the image.
_base_ = "hcformer_r18_shapes-panoptic.py"

model = dict(backbone=dict(hierarchical_level=5))
